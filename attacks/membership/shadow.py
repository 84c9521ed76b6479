"""Shadow attack: a classifier learns from shadow models' answers what a member looks like.

References:
    Shokri, Stronati, Song, Shmatikov, "Membership Inference Attacks Against Machine Learning
    Models", IEEE S&P 2017. https://arxiv.org/abs/1610.05820
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import softmax

from attacks.membership.classifiers import Kind, check_both_kinds, fit_log_odds
from attacks.membership.shadow_settings import ShadowSettings
from attacks.membership.signals import check_logits, load_signal, true_log_probability
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.threat_model import Knowledge, Observation

_LEAST_OF_A_CLASS = 20  # members, and as many non-members, to learn from


class Settings(ShadowSettings):
    """What a scenario may set: `{name = "shadow", classifier = "forest", per_class = true}`."""

    features: Literal["answers", "signals"] = Field(
        default="answers", description="Sorted probabilities, or `signals`; the loss beside them"
    )
    signals: tuple[str, ...] = Field(
        default=("logit", "entropy", "modified_entropy"),
        min_length=1,
        description='Of features = "signals": names, or "module:function"',
    )
    num_answers: int = Field(
        default=10, ge=1, description='Of features = "answers": the largest probabilities'
    )
    classifier: Kind = "logistic"
    per_class: bool = Field(default=False, description="One classifier for each class")
    num_training: int = Field(
        default=5000, ge=40, description="Answers that a classifier learns from, at most; by lot"
    )


def shadow_scores(
    target: NDArray[np.float64],
    shadow: NDArray[np.float64],
    is_member: NDArray[np.bool_],
    *,
    classes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    classifier: Kind = "logistic",
    num_training: int = 5000,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Log-odds of membership (an SVM's: distance to its border) by a classifier of features.

    It learns from as many members as non-members, drawn by lot.

    Args:
        target: Features of the target's answers, shape (n, d).
        shadow: Features of shadow models' answers, all models one below the other, shape (m, d).
        is_member: True where that model was trained on that record, shape (m,).
        classes: Of the n and of the m records, for one classifier a class; a class with fewer than
            20 members or non-members to learn from is judged by the classifier of all.
        num_training: How many of the m one classifier learns from, at most.

    Returns:
        Scores, shape (n,); higher = more likely a member.

    Raises:
        InputError: If shapes do not fit, or all records of shadow models are of one kind.

    References:
        Shokri et al., IEEE S&P 2017. https://arxiv.org/abs/1610.05820
    """
    check_both_kinds(is_member)
    drawn = _balanced(is_member, num_training, rng)
    scores = fit_log_odds(classifier, shadow[drawn], is_member[drawn], at=target, rng=rng)
    if classes is None:
        return scores
    asked, learned = classes
    for number in enough_to_learn(learned, is_member):
        here, own = asked == number, np.flatnonzero(learned == number)
        if here.any():
            own = own[_balanced(is_member[own], num_training, rng)]
            known = is_member[own]
            scores[here] = fit_log_odds(classifier, shadow[own], known, at=target[here], rng=rng)
    return scores


def enough_to_learn(classes: NDArray[np.int64], is_member: NDArray[np.bool_]) -> list[int]:
    """Classes with at least 20 members and 20 non-members."""
    return [
        int(number)
        for number in np.unique(classes)
        if min(np.bincount(is_member[classes == number], minlength=2)) >= _LEAST_OF_A_CLASS
    ]


def answer_features(
    logits: NDArray[np.float64], labels: NDArray[np.int64], *, num_answers: int = 10
) -> NDArray[np.float64]:
    """The largest probabilities, largest first, then the loss: shape (n, d)."""
    ordered = np.sort(softmax(logits, axis=-1), axis=-1)[..., ::-1][..., :num_answers]
    loss = -true_log_probability(logits, labels)
    return np.concatenate([ordered, loss[..., None]], axis=-1)


def signal_features(
    logits: NDArray[np.float64], labels: NDArray[np.int64], *, signals: Sequence[str]
) -> NDArray[np.float64]:
    """The signals, then the loss: shape (n, d)."""
    columns = [load_signal(name)(logits, labels) for name in signals if name != "loss"]
    return np.stack([*columns, -true_log_probability(logits, labels)], axis=-1)


def _balanced(
    is_member: NDArray[np.bool_], most: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    sides = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    each = min(most // 2, *map(len, sides))
    return np.sort(np.concatenate([rng.permutation(side)[:each] for side in sides]))


def _features(
    logits: NDArray[np.float64], labels: NDArray[np.int64], settings: Settings
) -> NDArray[np.float64]:
    check_logits(logits, labels)
    if settings.features == "answers":
        return answer_features(logits, labels, num_answers=settings.num_answers)
    return signal_features(logits, labels, signals=settings.signals)


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    shadows = lab.shadows(settings.mode, settings.num_shadow_models, instead="loss_threshold")
    if settings.mode == "online":
        records, is_member, answers = lab.candidates, shadows.in_shadow, shadows.logits()
    else:
        lab.require_population()
        records, is_member = lab.auxiliary, shadows.population_in_shadow
        answers = shadows.population_logits()
    learned = _features(answers, records.labels, settings)
    classes = np.tile(records.labels, len(shadows))
    labels, note = lab.candidates.labels, f"{len(shadows)} shadow models."
    if settings.per_class:
        own = np.isin(np.unique(labels), enough_to_learn(classes, is_member.ravel()))
        note += f" {own.sum()} of {len(own)} classes have a classifier of their own."
    scores = shadow_scores(
        _features(lab.logits(), labels, settings),
        learned.reshape(len(classes), -1),
        is_member.ravel(),
        classes=(labels, classes) if settings.per_class else None,
        classifier=settings.classifier,
        num_training=settings.num_training,
        rng=given.rng,
    )
    return MembershipScores(scores, notes=(note,))


ATTACK = AttackSpec(
    name="shadow",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/1610.05820",
    summary="A classifier of answers, trained on shadow models with known members",
    settings=Settings,
)

"""White box: a network learns, from records of known membership, what members look like inside.

References:
    Nasr, Shokri, Houmansadr, "Comprehensive Privacy Analysis of Deep Learning", IEEE S&P 2019,
    sections II-III. https://arxiv.org/abs/1812.00910
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.membership.white_box_features import FeatureMaker, Features
from attacks.membership.white_box_layers import Selection, select_layers
from attacks.membership.white_box_lesson import Lesson, check_models, find_lesson, same_records
from attacks.membership.white_box_probe import require_module
from attacks.membership.white_box_training import (
    AttackModel,
    NetworkConfig,
    Optimizer,
    one_thread,
    train_networks,
)
from attacks.shadows.lab import Lab, require_lab
from fl_audit.attack_spec import AttackInput, AttackSettings, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation

_LEAST_KNOWN = 10  # members, and as many non-members
_ROWS = 1024  # records whose features are in memory at once, besides those trained on


class Settings(AttackSettings):
    """What a scenario may set: `{name = "white_box", gradients = ["fc3"], lr = 1e-4}`."""

    gradients: list[str] | None = Field(
        default=None,
        description="Layers, by module path, whose gradients are used; null: the last ones with "
        "weights; [] together with activations = []: an attack on answers only",
    )
    activations: list[str] = Field(
        default_factory=list, description="Modules, by path, whose outputs are used"
    )
    last: int = Field(default=1, ge=1, le=100, description="How many layers gradients = null means")
    loss: bool = True
    # not "label": that is the name of an attack in every table of settings
    one_hot: bool = Field(default=True, description="The class, one number for each")
    optimizer: Optimizer = "adam"
    lr: float = Field(default=1e-3, gt=0, le=10)
    epochs: int = Field(default=100, ge=1, le=10_000, description="At most; fewer are chosen")
    batch_size: int = Field(default=64, ge=1, le=100_000)
    known_fraction: float = Field(
        default=0.5, gt=0, lt=1, description="Share of the candidates whose membership is granted"
    )
    train_on: Literal["known", "proxy", "shadow"] = Field(
        default="known",
        description="known: candidates whose membership is granted; proxy: another model of the "
        "adversary's; shadow: a shadow model",
    )
    validation: float = Field(
        default=0.25, ge=0.1, le=0.5, description="Share of these that chooses the epoch, in turns"
    )


def white_box_scores(
    known: Features,
    is_member: NDArray[np.bool_],
    candidates: Features,
    *,
    rng: np.random.Generator,
    config: NetworkConfig | None = None,
    same_as: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Log-odds of membership that attack networks give candidates.

    The networks are trained on the known records only, which also choose the epoch.

    Args:
        known: Features of m records whose membership is known.
        is_member: Their membership, shape (m,).
        candidates: Features of n records, from the same `FeatureMaker`.
        rng: Draws initial weights, folds and batches.
        config: How the networks are trained.
        same_as: Which known record each candidate is, -1 for none, shape (n,): no network that was
            trained on a record corrects its score. By default no candidate is known.

    Returns:
        Scores in nats, shape (n,); higher = more likely a member. They include the members' share
        of the known records.

    Raises:
        InputError: If fewer than 10 members or 10 non-members are known, or there is no feature.

    References:
        Nasr, Shokri, Houmansadr, IEEE S&P 2019. https://arxiv.org/abs/1812.00910
    """
    model = _learn(known, is_member, config or NetworkConfig(), rng=rng)
    return model.scores(candidates, same_as)


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    lesson = find_lesson(given, lab)
    selection = _selection(lab, settings)
    check_models(lesson.lab, lab, selection)
    maker = FeatureMaker(
        selection,
        loss=settings.loss,
        label=settings.one_hot,
        num_records=len(lesson.rows),
        seed=int(given.rng.integers(2**63)),
    )
    with one_thread():
        known = next(_features(maker, lesson.lab, [lesson.rows]))
        config = NetworkConfig(
            settings.optimizer,
            settings.lr,
            settings.epochs,
            settings.batch_size,
            settings.validation,
        )
        model = _learn(known, lesson.is_member, config, rng=given.rng)
        rows = np.arange(len(lab.rows))
        blocks = [rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS)]
        same_as = same_records(lesson, lab)
        scores = [
            model.scores(features, same_as[block])
            for block, features in zip(blocks, _features(maker, lab, blocks), strict=True)
        ]
    return MembershipScores(
        np.concatenate(scores), notes=_notes(lesson, selection, maker, model, loss=settings.loss)
    )


def _selection(lab: Lab, settings: Settings) -> Selection:
    if settings.gradients == [] and not settings.activations:
        return Selection()
    return select_layers(
        require_module(lab.target),
        gradients=settings.gradients,
        activations=settings.activations,
        last=settings.last,
    )


def _features(
    maker: FeatureMaker, lab: Lab, blocks: Sequence[NDArray[np.int64]]
) -> Iterator[Features]:
    """Of blocks of a laboratory's candidates."""
    logits, pool = lab.logits(), lab.workshop.pool
    for rows in blocks:
        yield maker.features(lab.target, pool.take(lab.rows[rows]), logits[rows])


def _learn(
    known: Features,
    is_member: NDArray[np.bool_],
    config: NetworkConfig,
    *,
    rng: np.random.Generator,
) -> AttackModel:
    if is_member.shape != (len(known),) or is_member.dtype != np.bool_:
        raise InputError(
            "is_member",
            (is_member.shape, str(is_member.dtype)),
            f"must be booleans of shape ({len(known)},)",
            "Give one for each known record.",
        )
    fewest = int(min(is_member.sum(), (~is_member).sum()))
    if fewest < _LEAST_KNOWN:
        raise InputError(
            "known records",
            {"members": int(is_member.sum()), "non-members": int((~is_member).sum())},
            f"at least {_LEAST_KNOWN} of each are needed to train an attack network",
            'Raise known_fraction, ask about more records, or use train_on = "shadow".',
        )
    if not known.scalars.shape[1] and not known.blocks:
        raise InputError(
            "features", [], "there is nothing to look at", "Use loss = true, or name layers."
        )
    return train_networks(known, is_member, config, rng=rng)


def _notes(
    lesson: Lesson, selection: Selection, maker: FeatureMaker, model: AttackModel, *, loss: bool
) -> tuple[str, ...]:
    layers = [*selection.gradients, *selection.activations]
    base = "loss" if loss else "gradients' norm"
    notes = [
        f"{len(model.learners)} networks trained on {len(lesson.rows)} records of {lesson.told}, "
        f"on {'answers only' if not selection else f'layers {layers}'}.",
        f"Stopped after epoch {model.epoch}; {model.share:g} of their correction counts."
        if model.epoch
        else f"Scores rank by the {base} alone: on records left out, the networks found no more.",
    ]
    if maker.projected:
        notes.append(f"Projected at random to fewer numbers: {', '.join(maker.projected)}.")
    return tuple(notes)


ATTACK = AttackSpec(
    name="white_box",
    kind="membership",
    requires=Observation.FINAL_MODEL,
    knows=Knowledge.LABELS | Knowledge.KNOWN_MEMBERS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/1812.00910",
    summary="A network over gradients, activations, loss and label learns who is a member",
    settings=Settings,
)

"""White box: a network learns, from records of known membership, what members look like inside.

References:
    Nasr, Shokri, Houmansadr, "Comprehensive Privacy Analysis of Deep Learning", IEEE S&P 2019,
    sections II-III. https://arxiv.org/abs/1812.00910
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.membership.white_box_features import FeatureMaker, Features
from attacks.membership.white_box_layers import Selection, check_same_layers, select_layers
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
from fl_audit.records import Records
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
    label: bool = Field(default=True, description="The class, one number for each")
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
) -> NDArray[np.float64]:
    """Log-odds of membership that attack networks give candidates.

    The networks are trained on the known records only, which also choose the epoch.

    Args:
        known: Features of m records whose membership is known.
        is_member: Their membership, shape (m,).
        candidates: Features of n records, from the same `FeatureMaker`.
        rng: Draws initial weights, folds and batches.
        config: How the networks are trained.

    Returns:
        Scores in nats, shape (n,); higher = more likely a member. They include the members' share
        of the known records.

    Raises:
        InputError: If fewer than 10 members or 10 non-members are known, or there is no feature.

    References:
        Nasr, Shokri, Houmansadr, IEEE S&P 2019. https://arxiv.org/abs/1812.00910
    """
    return _learn(known, is_member, config or NetworkConfig(), rng=rng).scores(candidates)


@dataclass(frozen=True, slots=True, eq=False)
class _Lesson:
    """Records of known membership, and the model that they were or were not trained into."""

    lab: Lab
    rows: NDArray[np.int64]  # of the laboratory's candidates
    is_member: NDArray[np.bool_]
    told: str


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    lesson = _lesson(given, lab)
    selection = _selection(lab, settings)
    _check_models(lesson.lab, lab, selection)
    maker = FeatureMaker(
        selection,
        loss=settings.loss,
        label=settings.label,
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
        scores = [model.scores(features) for features in _features(maker, lab, blocks)]
    return MembershipScores(
        np.concatenate(scores), notes=_notes(lesson, selection, maker, model, loss=settings.loss)
    )


def _lesson(given: AttackInput, lab: Lab) -> _Lesson:
    train_on = given.settings.train_on
    if train_on == "shadow":
        num = 2 + len(lab.left_out)  # the next pair where one plays the target already
        played = lab.calibration("online", num)
        if played is None:
            raise InputError(
                "train_on",
                "shadow",
                "no shadow model can be trained, or on too few records",
                'Give a trainer and more records, or use train_on = "known".',
            )
        shadow, is_member = played
        return _Lesson(shadow, np.arange(len(shadow.rows)), is_member, "a shadow model")
    if train_on == "proxy":
        if lab.proxy is None:
            raise InputError(
                "proxy",
                None,
                'train_on = "proxy" needs another model with records of known membership',
                'Give one, or use train_on = "known" or "shadow".',
            )
        proxy, is_member = lab.proxy
        _check_disjoint(proxy.candidates, lab)
        return _Lesson(proxy, np.arange(len(proxy.rows)), is_member, "the adversary's own model")
    if given.known is None:
        raise InputError(
            "known",
            None,
            'train_on = "known" needs candidates whose membership is granted',
            'Grant known-members in the threat model, or use train_on = "shadow".',
        )
    return _Lesson(lab, *given.known, told="the target itself")


def _selection(lab: Lab, settings: Settings) -> Selection:
    if settings.gradients == [] and not settings.activations:
        return Selection()
    return select_layers(
        require_module(lab.target),
        gradients=settings.gradients,
        activations=settings.activations,
        last=settings.last,
    )


def _check_models(trained_on: Lab, attacked: Lab, selection: Selection) -> None:
    tasks = [(lab.task.kind, lab.task.num_classes) for lab in (trained_on, attacked)]
    if tasks[0] != tasks[1]:
        raise InputError(
            "proxy",
            tasks,
            "the model that the attack is trained on must answer like the attacked one",
            "Use a model with the same number of classes.",
        )
    if selection and trained_on.target is not attacked.target:
        check_same_layers(require_module(trained_on.target), require_module(attacked.target))


def _check_disjoint(records: Records, lab: Lab) -> None:
    pool = lab.workshop.pool
    audited = {digest for digest, _ in _digests(pool.take(np.arange(lab.workshop.num_audited)))}
    for digest, number in _digests(records):
        if digest in audited:
            raise InputError(
                f"record {number} of the proxy",
                digest[:12],
                "is an audited record, too: the attack must learn from others than it is judged on",
                "Give the proxy records that are not audited.",
            )


def _digests(records: Records) -> list[tuple[str, int]]:
    """Content of each record, and its id."""
    wanted = records.labels if records.targets is None else records.targets
    found = []
    for rows in records.blocks():
        inputs = np.ascontiguousarray(records.inputs[rows], dtype=np.float32)
        for x, y, number in zip(inputs, wanted[rows], records.ids[rows], strict=True):
            found.append((hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest(), int(number)))
    return found


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
    lesson: _Lesson, selection: Selection, maker: FeatureMaker, model: AttackModel, *, loss: bool
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

"""Stacking: one score from several attacks, weighed by how they do on a shadow model.

References:
    Wolpert, "Stacked Generalization", Neural Networks 5(2), 1992.
    https://doi.org/10.1016/S0893-6080(05)80023-1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue, ValidationError

from attacks.membership.classifiers import fit_log_odds, known_task
from attacks.membership.shadow_settings import ShadowSettings
from attacks.shadows.lab import Lab, require_lab
from fl_audit.attack_spec import (
    AttackInput,
    AttackSettings,
    AttackSpec,
    MembershipScores,
    check_member_scores,
)
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation

_SEEN = Observation.LOGITS | Observation.LABELS_ONLY
_GRANTED = Knowledge.LABELS | Knowledge.AUXILIARY_DATA
_LEAST = 4  # two play the target, and two are left to the attacks


class Settings(ShadowSettings):
    """What a scenario may set: `{name = "stacking", attacks = ["rmia", {name = "lira"}]}`.

    `mode` and `num_shadow_models` hold for the stacked attacks, too, unless their own tables say
    otherwise. Two of the shadow models play the target and are lost to the attacks meanwhile, and
    two more where the stack itself is calibrated: give four more than the attacks need at least.
    """

    attacks: tuple[str | dict[str, JsonValue], ...] = Field(
        default=("loss_threshold", "rmia", "lira"),
        min_length=1,
        description="Attacks on the model, by name or as tables of settings",
    )


@dataclass(frozen=True, slots=True)
class _Base:
    spec: AttackSpec
    settings: AttackSettings


def stacking_scores(
    scores: NDArray[np.float64],
    known_scores: NDArray[np.float64],
    is_member: NDArray[np.bool_],
    *,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Log-odds of membership by a logistic regression on b attacks' scores.

    Each attack's scores are centred and scaled by the median and quartiles of its known scores,
    and their tails drawn in by arsinh, which keeps their order: one attack alone is ranked as
    before.

    Args:
        scores: Of the attacks on n records, shape (b, n); higher = more likely a member.
        known_scores: Of the same attacks on m records of a shadow model, shape (b, m).
        is_member: True where the shadow model was trained on a record, shape (m,).

    Returns:
        Scores in nats, shape (n,); higher = more likely a member.

    Raises:
        InputError: If shapes do not fit or all known records are of one kind.

    References:
        Wolpert, Neural Networks 1992. https://doi.org/10.1016/S0893-6080(05)80023-1
    """
    if scores.ndim != 2 or known_scores.shape != (len(scores), len(is_member)):
        raise InputError(
            "known_scores",
            known_scores.shape,
            f"must have shape (b, {len(is_member)}) beside scores (b, n) of shape {scores.shape}",
            "Give one row an attack and one column a record.",
        )
    centre = np.median(known_scores, axis=1)
    low, high = np.quantile(known_scores, [0.25, 0.75], axis=1)
    spread = known_scores.std(axis=1)
    scale = np.where(high > low, high - low, np.where(spread > 0, spread, 1))

    def features(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.arcsinh((values.T - centre) / scale)
        return found

    return fit_log_odds("logistic", features(known_scores), is_member, at=features(scores), rng=rng)


def _bases(settings: Settings) -> list[_Base]:
    return [_base(item, settings) for item in settings.attacks]


def _base(item: str | Mapping[str, JsonValue], stack: Settings) -> _Base:
    from attacks.registry import load_attack  # lists this module, too

    table = {"name": item} if isinstance(item, str) else dict(item)
    name = str(table.pop("name", ""))
    spec = load_attack(name)
    _check_base(spec)
    for shared in ("mode", "num_shadow_models"):
        if shared in spec.settings.model_fields:
            table.setdefault(shared, getattr(stack, shared))
    try:
        return _Base(spec, spec.settings.model_validate(table))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"stacking.attacks: setting {'.'.join(map(str, first['loc']))!r} of {name!r}",
            first["input"],
            first["msg"],
            f"It takes: {', '.join(sorted(spec.settings.model_fields)) or 'no settings'}.",
        ) from error


def _check_base(spec: AttackSpec) -> None:
    rule = ""
    if spec.name == "stacking":
        rule = "a stack cannot hold a stack"
    elif not spec.is_on_model:
        rule = "is no attack on the model, which is what a stack asks"
    elif spec.requires & ~_SEEN or spec.knows & ~_GRANTED:
        rule = "needs more than the model's answers, labels and auxiliary records"
    if rule:
        raise InputError(
            "stacking.attacks", spec.name, rule, "Run it beside the stack, or leave it out."
        )


def _run_bases(
    bases: Sequence[_Base], given: AttackInput, lab: Lab
) -> tuple[NDArray[np.float64], list[str]]:
    """Scores of each attack on a laboratory's candidates, (b, n), and what the attacks note."""
    rows, notes = [], []
    for base in bases:
        output = base.spec.run(
            replace(
                given,
                settings=base.settings,
                rng=np.random.default_rng(int(given.rng.integers(2**63))),
                candidates=lab.candidates,
                lab=lab,
                known=None,
            )
        )
        assert isinstance(output, MembershipScores)  # is_on_model: a membership attack
        check_member_scores(output.scores, len(lab.rows), f"stacking: {base.spec.name}")
        rows.append(output.scores)
        notes += [f"{base.spec.name}: {note}" for note in output.notes]
    return np.stack(rows), notes


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    bases = _bases(settings)
    num = settings.num_shadow_models
    if num < _LEAST and any("num_shadow_models" in b.spec.settings.model_fields for b in bases):
        raise InputError(
            "num_shadow_models",
            num,
            f"a stack of attacks with shadow models needs at least {_LEAST}: two of them play the "
            "target",
            f"Raise it to {_LEAST} or more, or stack attacks without shadow models.",
        )
    task, is_member = known_task(lab, settings.mode, num, instead="one of the attacks alone")
    most = min(base.spec.most_calibration for base in bases)
    keep = np.sort(given.rng.permutation(len(is_member))[:most])
    task, is_member = replace(task, rows=task.rows[keep]), is_member[keep]
    known_scores, _ = _run_bases(bases, given, task)
    scores, notes = _run_bases(bases, given, lab)
    learned = f"Weighed on {len(is_member)} records of one shadow model."
    return MembershipScores(
        stacking_scores(scores, known_scores, is_member, rng=given.rng),
        notes=(learned, *dict.fromkeys(notes)),
    )


ATTACK = AttackSpec(
    name="stacking",
    kind="membership",
    requires=Observation.LOGITS,
    knows=_GRANTED,
    run=_run,
    reference="https://doi.org/10.1016/S0893-6080(05)80023-1",
    summary="Several attacks' scores in one, weighed by how they do on a shadow model",
    settings=Settings,
)

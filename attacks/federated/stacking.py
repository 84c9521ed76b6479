"""Several attacks on a trace in one score, weighed or chosen on shadow federations.

Which attack is best depends on the federation: how far it memorises, how many clients there are,
what its defence does. Which it is must not be read off the result. Here the attacks run on shadow
federations first, where the adversary knows the answer; there they are weighed against each other
by a logistic regression ("stack"), or the one that does best on average is taken ("best").

References:
    Wolpert, "Stacked generalization", Neural Networks 1992.
    https://doi.org/10.1016/S0893-6080(05)80023-1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue, ValidationError
from scipy.stats import norm, rankdata

from attacks.candidates import require_candidates
from attacks.federated.rehearsal import LEAST, require_rehearsals
from attacks.membership.classifiers import fit_log_odds
from fl_audit.attack_spec import (
    AttackInput,
    AttackSettings,
    AttackSpec,
    MembershipScores,
    check_member_scores,
)
from fl_audit.errors import InputError, ObservationError, shorten
from fl_audit.stats import auc
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView

_SEEN = Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL
_GRANTED = Knowledge.LABELS | Knowledge.AUXILIARY_DATA | Knowledge.LOCAL_TRAINING
_DEFAULT = (
    "cosine",
    "fedmia",
    "gradient_difference",
    "gradient_norm",
    "gradient_regression",
    "loss_series",
)


class Settings(AttackSettings):
    """Which attacks, and how they become one score."""

    attacks: tuple[str | dict[str, JsonValue], ...] = Field(
        default=_DEFAULT,
        min_length=1,
        description="Passive attacks on updates, by name or as tables of settings",
    )
    combine: Literal["stack", "best"] = "stack"
    """"stack": logistic regression on all; "best": the one that did best on average."""
    num_shadow_federations: int = Field(default=4, ge=LEAST)


def normal_ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of one federation as normal quantiles of their ranks, ties at their mean rank.

    Federations differ in scale; an attack's place among its own candidates does not.
    """
    places: NDArray[np.float64] = norm.ppf((rankdata(scores) - 0.5) / len(scores))
    return places


def _bases(settings: Settings) -> list[tuple[AttackSpec, AttackSettings]]:
    return [_base(item) for item in settings.attacks]


def _base(item: str | Mapping[str, JsonValue]) -> tuple[AttackSpec, AttackSettings]:
    from attacks.registry import load_attack  # lists this module, too

    table = {"name": item} if isinstance(item, str) else dict(item)
    name = str(table.pop("name", ""))
    spec = load_attack(name)
    rule = ""
    if spec.name == "federated_stacking":
        rule = "a stack cannot hold a stack"
    elif spec.kind != "membership" or spec.is_on_model:
        rule = "is no membership attack on updates, which is what this stack asks"
    elif spec.activity == "malicious":
        rule = "needs a malicious adversary, and a stack is passive"
    elif spec.requires & ~_SEEN & ~Observation.AGGREGATE or spec.knows & ~_GRANTED:
        rule = "needs more than updates, labels, local training and auxiliary records"
    if rule:
        raise InputError(
            "federated_stacking.attacks", name, rule, "Run it beside the stack, or leave it out."
        )
    try:
        return spec, spec.settings.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"federated_stacking.attacks: setting {'.'.join(map(str, first['loc']))!r} of {name!r}",
            first["input"],
            first["msg"],
            f"It takes: {', '.join(sorted(spec.settings.model_fields)) or 'no settings'}.",
        ) from error


def _run_bases(
    bases: Sequence[tuple[AttackSpec, AttackSettings]],
    given: AttackInput,
    view: TraceView,
    seed: int,
) -> NDArray[np.float64]:
    """Normal ranks of each attack's scores on one federation, shape (b, n)."""
    rows = []
    for number, (spec, settings) in enumerate(bases):
        own = replace(
            given,
            view=view,
            settings=settings,
            rng=np.random.default_rng([seed, number]),
            known=None,
        )
        try:
            output = spec.run(own)
        except ObservationError:
            raise
        except InputError as error:
            held = ", ".join(f'"{base.name}"' for base, _ in bases)
            raise InputError(
                "federated_stacking.attacks",
                spec.name,
                f"the stack cannot run it here: {error.name} = {shorten(error.value)}: "
                f"{error.rule}",
                f"Leave it out of attacks = [{held}]. For this attack alone: {error.remedy}",
            ) from error
        assert isinstance(output, MembershipScores)  # a membership attack
        assert given.candidates is not None
        check_member_scores(output.scores, len(given.candidates), f"stack: {spec.name}")
        rows.append(normal_ranks(output.scores))
    return np.stack(rows)


def _run(given: AttackInput) -> MembershipScores:
    require_candidates(given)
    settings, bases = given.settings, _bases(given.settings)
    played, how = require_rehearsals(given, settings.num_shadow_federations)
    seed = int(given.rng.integers(2**63))
    known = [_run_bases(bases, given, rehearsal.view, seed) for rehearsal in played]
    scores = _run_bases(bases, given, given.view, seed)
    aucs = np.array(
        [
            [auc(rehearsal.is_member, row) for row in rows]
            for rehearsal, rows in zip(played, known, strict=True)
        ]
    )
    means = aucs.mean(axis=0)
    names = [spec.name for spec, _ in bases]
    found = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(names, means, strict=True))
    notes = [f"Mean AUC on {len(played)} {how}: {found}."]
    if settings.combine == "best":
        best = int(means.argmax())
        return MembershipScores(
            scores[best],
            (f"Chose {names[best]} on federations other than the one scored.", *notes),
        )
    is_member = np.concatenate([rehearsal.is_member for rehearsal in played])
    learned = np.concatenate(known, axis=1).T
    stacked = fit_log_odds("logistic", learned, is_member, at=scores.T, rng=given.rng)
    return MembershipScores(stacked, tuple(notes))


ATTACK = AttackSpec(
    name="federated_stacking",
    kind="membership",
    requires=_SEEN,
    knows=_GRANTED,
    run=_run,
    reference="https://doi.org/10.1016/S0893-6080(05)80023-1",
    summary="Several attacks on updates in one, weighed or chosen on shadow federations",
    settings=Settings,
)

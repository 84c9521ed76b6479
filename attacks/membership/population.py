"""Population attack (P-attack): where does the record's signal fall among those of non-members?

References:
    Ye et al., "Enhanced Membership Inference Attacks against Machine Learning Models", CCS 2022,
    attack P. https://arxiv.org/abs/2111.09679
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from attacks.membership.quantiles import SignalName, rank_share, task_signal
from attacks.shadows.lab import Lab, require_lab
from fl_audit.attack_spec import AttackInput, AttackSettings, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.factories import load_attribute
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation

_LEAST = 10  # records of a group: a share of fewer says nothing about a false-positive rate
Groups = NDArray[np.int64]


class Settings(AttackSettings):
    """What a scenario may set: `{name = "population", signal = "entropy", per = "class"}`."""

    signal: SignalName = Field(
        default="loss",
        description="loss, logit, confidence, entropy, modified_entropy or module:function",
    )
    per: Literal["global", "class", "group"] = Field(
        default="global", description="Compared with all of the population, or with its own kind"
    )
    group_by: str | None = Field(
        default=None,
        validate_default=True,
        description='module:function of (inputs, labels) -> an integer a record, for per = "group"',
    )

    @field_validator("group_by")
    @classmethod
    def _goes_with_groups(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is not None) != (info.data.get("per") == "group"):
            raise ValueError('per = "group" and group_by = "module:function" go together')
        return value


def population_scores(
    values: NDArray[np.float64],
    population: NDArray[np.float64],
    *,
    groups: tuple[Groups, Groups] | None = None,
    kind: str = "group",
) -> NDArray[np.float64]:
    """Share of the population with a lower signal than the record, equal ones counting half.

    1 minus the score estimates the false-positive rate of a threshold at the record's signal, so
    scores of different groups compare. Records in the same place between two of the population are
    told apart within half a record, see `rank_share`.

    Args:
        values: Signals of the records, shape (n,); higher = more likely a member.
        population: Signals of m non-members, shape (m,).
        groups: Group of each record (n,), and of each of the population (m,): a record is then
            compared with its own group only.
        kind: What a group is, for messages.

    Returns:
        Scores in [0, 1], shape (n,); higher = more likely a member.

    Raises:
        InputError: If a signal is not finite, the population is empty, or a record's group has
            fewer than 10 records there.
    """
    if groups is None:
        return rank_share(values, population)
    own, theirs = groups
    scores = np.empty(len(values))
    for group in np.unique(own):
        peers = population[theirs == group]
        if len(peers) < _LEAST:
            raise InputError(
                f"population records of {kind} {group}",
                len(peers),
                f"at least {_LEAST} are needed to rank a record among its {kind}",
                'Give more auxiliary records, or use per = "global".',
            )
        scores[own == group] = rank_share(values[own == group], peers)
    return scores


def _groups_of(records: Records, path: str, function: Any) -> Groups:
    """A user's groups, asked for block by block; targets of a regression stand for labels."""
    wanted = records.labels if records.targets is None else records.targets
    found = np.empty(len(records), dtype=np.int64)
    for rows in records.blocks():
        inputs = np.asarray(records.inputs[rows])
        try:
            groups = np.asarray(function(inputs, wanted[rows]))
        except Exception as error:  # users' code raises anything
            raise InputError(
                "group_by",
                path,
                f"raised {type(error).__name__}: {error}",
                "It is called with inputs (n, ...) and labels (n,), on blocks of records.",
            ) from error
        if groups.shape != (len(inputs),) or groups.dtype.kind not in "iub":
            raise InputError(
                "group_by",
                path,
                f"gave {groups.dtype} of shape {groups.shape} for {len(inputs)} records",
                "Return one integer a record: its group.",
            )
        found[rows] = groups
    return found


def _both_groups(lab: Lab, settings: Settings) -> tuple[Groups, Groups] | None:
    records = (lab.candidates, lab.auxiliary)
    if settings.per == "class":
        if lab.task.kind == "regression":
            raise InputError(
                "per", "class", "a regression has no classes", 'Use "global", or "group".'
            )
        return records[0].labels, records[1].labels
    if settings.group_by is None:
        return None
    function = load_attribute(settings.group_by, "group_by")
    own, theirs = (_groups_of(r, settings.group_by, function) for r in records)
    return own, theirs


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    lab.require_population()
    signal = task_signal(settings.signal, lab.task)
    scores = population_scores(
        signal(lab.logits(), lab.candidates.labels),
        signal(lab.population_logits(), lab.auxiliary.labels),
        groups=_both_groups(lab, settings),
        kind=settings.per,
    )
    compared = "" if settings.per == "global" else f", each record with its own {settings.per}"
    return MembershipScores(scores, notes=(f"{len(lab.population)} auxiliary records{compared}.",))


ATTACK = AttackSpec(
    name="population",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2111.09679",
    summary="Where the record's loss falls among those of non-members; needs no shadow models",
    settings=Settings,
)

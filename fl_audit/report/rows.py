"""Results as rows of tables: each attack with its verdict, and each figure beside its control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fl_audit.report.access import access_of_record
from fl_audit.report.verdict import verdict
from fl_audit.results import (
    PER_CLAIM,
    AnyAttackRecord,
    Estimate,
    EstimateRecord,
    MembershipRecord,
    UnavailableRecord,
)

_OVERVIEW_FPRS = ("0.1", "0.01", "0.001")
_FEW_ATTACKS = 4  # shown in one table; more get a line each before it
_NOT_MEASURED = "there is no truth to compare with"
_MANY_ATTACKS = 8  # more than these are folded up below their lines


@dataclass(frozen=True, slots=True)
class MetricLine:
    """One metric of an attack, beside its control or exact chance; or why there is none.

    Attributes:
        expected: What theory said of it, before the truth was looked at.
        gain: What it gains on the guess, update by update, if this decides the verdict.
        of_claims: Whether it is about what was claimed, where some updates gave no claim.
    """

    name: str
    found: Estimate | None
    control: Estimate | None
    refused: str | None = None
    chance: float | None = None
    expected: float | None = None
    gain: Estimate | None = None
    of_claims: bool = False


@dataclass(frozen=True, slots=True)
class AttackRow:
    """One attack in the table of results.

    Attributes:
        tone: "leak", "none" (nothing detected), "doubt" (not to be trusted) or "silent" (says
            nothing); the page shows it besides the verdict's words, never instead.
    """

    record: AnyAttackRecord
    access: str
    verdict: str
    tone: str
    lines: list[MetricLine]

    @property
    def found(self) -> dict[str, Estimate]:
        """The figures of a membership attack by name."""
        return {line.name: line.found for line in self.lines if line.found is not None}


@dataclass(frozen=True, slots=True)
class Overview:
    """Every attack on one line, where there are many.

    Attributes:
        columns: Names of metrics that some attack has.
        is_folded: Whether the table of all figures is folded up below.
    """

    columns: list[str]
    is_folded: bool


def attack_row(record: AnyAttackRecord) -> AttackRow:
    """A record with its verdict and its figures."""
    sentence = verdict(record)
    tone, access = _tone(record, sentence), access_of_record(record)
    return AttackRow(record, access, sentence, tone, list(_lines(record)))


def overview(rows: Sequence[AttackRow]) -> Overview | None:
    """One line an attack, or None where there are few."""
    scored = [r.found for r in rows if isinstance(r.record, MembershipRecord) and r.found]
    if len(scored) <= _FEW_ATTACKS:
        return None
    known = [
        "auc",
        "auc_of_most_exposed",
        *(f"tpr@fpr={r}" for r in _OVERVIEW_FPRS),
        "balanced_accuracy",
    ]
    columns = [name for name in known if any(name in found for found in scored)]
    return Overview(columns, is_folded=len(rows) > _MANY_ATTACKS)


def _tone(record: AnyAttackRecord, sentence: str) -> str:
    if isinstance(record, MembershipRecord) and record.result and record.null_holds is False:
        return "doubt"
    starts = {
        "leaks": "leak",
        "training data reconstructed": "leak",
        "no ": "none",
        "below chance": "doubt",
    }
    return next((tone for start, tone in starts.items() if sentence.startswith(start)), "silent")


def _lines(record: AnyAttackRecord) -> Iterator[MetricLine]:
    """Metrics in the order they were recorded, then the refused ones with their reasons."""
    if isinstance(record, UnavailableRecord):
        return
    refused: Mapping[str, str]
    chance: Mapping[str, float] = {}
    expected: Mapping[str, float] = {}
    gain: Mapping[str, Estimate] = {}
    of_claims: frozenset[str] = frozenset()
    if isinstance(record, MembershipRecord):
        found = {} if record.result is None else record.result.metrics
        control = {} if record.null is None else record.null.metrics
        refused = {} if record.result is None else record.result.refused
    elif isinstance(record, EstimateRecord):
        found, control, refused = record.metrics, record.null | record.baseline, record.refused
        chance = record.chance
    else:
        found, control, refused = record.metrics, record.baseline, record.refused
        expected = record.expected
        gain = {name: e for name, e in record.gain.items() if name == record.leading}
        of_claims = PER_CLAIM if (record.num_tried or 0) > record.num_targets else of_claims
        unknown = {name: _NOT_MEASURED for name in expected if name not in found}
        refused = unknown | refused
    for name, estimate in found.items():
        yield MetricLine(
            name,
            estimate,
            control.get(name),
            chance=chance.get(name),
            expected=expected.get(name),
            gain=gain.get(name),
            of_claims=name in of_claims,
        )
    for name, reason in refused.items():
        yield MetricLine(name, None, None, reason, expected=expected.get(name))

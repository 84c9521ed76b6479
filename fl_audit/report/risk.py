"""Who is at risk, by attack, and which records several attacks name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fl_audit.report.figures import histogram_figure, small_histograms
from fl_audit.report.rows import AttackRow
from fl_audit.results import (
    ClassSlice,
    MembershipRecord,
    RiskDetails,
)

_CHANCE = 0.5
_LEAK = "leak"
_MOST_ATTACKS = 40  # with a figure each
_MOST_SMALL = 20  # classes with a histogram
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class ClassPicture:
    """The small histogram of one class."""

    label: int
    figure: Markup


@dataclass(frozen=True, slots=True)
class AttackRisk:
    """Who is at risk by one attack.

    Attributes:
        is_over_models: Whether "scores" are AUCs of single records over many models.
        classes: The most exposed first: by the lower limit of their AUC.
        num_above: Classes whose interval lies wholly above chance.
        is_open: Whether the page shows it unfolded.
    """

    record: MembershipRecord
    details: RiskDetails
    verdict: str
    tone: str
    is_over_models: bool
    figure: Markup
    pictures: list[ClassPicture]
    classes: list[ClassSlice]
    num_above: int
    is_open: bool


@dataclass(frozen=True, slots=True)
class RiskOverview:
    """Who is at risk, by all attacks.

    Attributes:
        is_calibrated: Whether the first attack did best on a shadow model; else those that found
            leakage come first.
        named: Members that attacks which found leakage name; `num_naming` attacks did.
    """

    attacks: list[AttackRisk]
    num_left_out: int
    is_calibrated: bool
    named: list[NamedRecord]
    num_naming: int


@dataclass(frozen=True, slots=True)
class NamedRecord:
    """A member that several attacks have among those they are most sure about."""

    id: int
    label: int
    attacks: list[str]
    best_place: int


def risk_overview(rows: Iterable[AttackRow]) -> RiskOverview | None:
    """Who is at risk; the attack to read first stands first. None if nothing is known."""
    able = [(row, record) for row in rows if (record := _with_details(row)) is not None]
    if not able:
        return None
    is_calibrated = any(record.decisions is not None for _, record in able)
    # stable sorts: others keep the table's order
    if is_calibrated:
        able.sort(key=lambda pair: -_on_shadow(pair[1]))
    else:
        able.sort(key=lambda pair: pair[0].tone != _LEAK)
    naming = [r for row, r in able if row.tone == _LEAK and not _is_over_models(_details(r))]
    return RiskOverview(
        attacks=[_attack(*pair, place) for place, pair in enumerate(able[:_MOST_ATTACKS])],
        num_left_out=max(0, len(able) - _MOST_ATTACKS),
        is_calibrated=is_calibrated,
        named=_named(naming),
        num_naming=len(naming),
    )


def _with_details(row: AttackRow) -> MembershipRecord | None:
    record = row.record
    return record if isinstance(record, MembershipRecord) and record.details is not None else None


def _details(record: MembershipRecord) -> RiskDetails:
    assert record.details is not None
    return record.details


def _on_shadow(record: MembershipRecord) -> float:
    return -1.0 if record.decisions is None else record.decisions.calibration_auc.value


def _is_over_models(details: RiskDetails) -> bool:
    """Games about many models give figures by record and none by class."""
    return not details.per_class


def _attack(row: AttackRow, record: MembershipRecord, place: int) -> AttackRisk:
    details = _details(record)
    is_over_models = _is_over_models(details)
    if is_over_models:
        quantity = "AUC of each record over models"
    elif record.decisions is not None:
        quantity = "membership probability"
    else:
        quantity = "score"
    by_class = dict(sorted(details.histogram_per_class.items())[:_MOST_SMALL])
    small = small_histograms(
        list(by_class.values()), label="Histogram of one class, as above, on a common scale."
    )
    return AttackRisk(
        record=record,
        details=details,
        verdict=row.verdict,
        tone=row.tone,
        is_over_models=is_over_models,
        figure=histogram_figure(
            details.histogram,
            quantity=quantity,
            name=f"risk-{_letters(place)}",
            label=f"Histogram: {quantity}, members and non-members. The numbers stand below.",
        ),
        pictures=[ClassPicture(c, picture) for c, picture in zip(by_class, small, strict=True)],
        classes=sorted(details.per_class, key=lambda c: 1.0 if c.auc is None else -c.auc.low),
        num_above=sum(c.auc is not None and c.auc.low > _CHANCE for c in details.per_class),
        is_open=place == 0,
    )


def _letters(place: int) -> str:
    """A name without digits, as names of figures are: "aa", "ab", ..."""
    return chr(97 + place // 26 % 26) + chr(97 + place % 26)


def _named(records: Sequence[MembershipRecord]) -> list[NamedRecord]:
    """Members that at least two attacks name: by how many, then by their best place."""
    found: dict[int, NamedRecord] = {}
    for record in records:
        for place, exposed in enumerate(_details(record).most_exposed, start=1):
            before = found.get(exposed.id)
            names = [] if before is None else before.attacks
            if record.label not in names:
                best = place if before is None else min(place, before.best_place)
                found[exposed.id] = NamedRecord(
                    exposed.id, exposed.label, [*names, record.label], best
                )
    several = [record for record in found.values() if len(record.attacks) > 1]
    several.sort(key=lambda record: (-len(record.attacks), record.best_place, record.id))
    return several[:_MOST_NAMED]

"""What attacks reconstructed, result by result: pictures, values, and how the searches went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fl_audit.report.figures import LineStyle, line_style, objective_figure
from fl_audit.report.model import (
    AuditReport,
    ObjectiveTrace,
    ReconstructedValues,
    ReconstructionImage,
)
from fl_audit.results import ColumnFigure, ReconstructionRecord

_MAX_FIGURES = 26  # one letter each in the ids of a figure
_MAX_LINES = 14  # of one figure; more cannot be told apart
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a search, in the table behind its line


@dataclass(frozen=True, slots=True)
class Search:
    """One line of the figure of a result's searches."""

    trace: ObjectiveTrace
    style: LineStyle

    @property
    def points(self) -> list[tuple[int, float]]:
        """Iteration and objective at the beginning, at each quarter, and at the end."""
        steps, values = self.trace.steps, self.trace.values
        places = [round(share * (min(len(steps), len(values)) - 1)) for share in _SHARES]
        return [(steps[place], values[place]) for place in places]


@dataclass(frozen=True, slots=True)
class Gallery:
    """What one attack reconstructed.

    Attributes:
        is_class: Whether pictures are of a class, not of records.
        contents: "numbers", "tokens" or "table".
        sum_of: What a sum of updates is of, in words.
        figure: The searches' objectives; None if there are none.
    """

    label: str
    is_class: bool
    contents: str
    sum_of: str
    images: Sequence[ReconstructionImage]
    values: Sequence[ReconstructedValues]
    columns: Sequence[ColumnFigure]
    searches: Sequence[Search]
    figure: Markup | None


def galleries(report: AuditReport) -> list[Gallery]:
    """One for each result that has something to show, in the order of the report."""
    found: list[Gallery] = []
    records = {r.label: r for r in report.attacks if isinstance(r, ReconstructionRecord)}
    # a report may show pictures of a result that it does not have any more
    labels = dict.fromkeys([*records, *report.images, *report.values, *report.objectives])
    for label in labels:
        record = records.get(label)
        images, values = report.images.get(label, []), report.values.get(label, [])
        searches = _searches(report.objectives.get(label, []))
        columns = [] if record is None else record.columns
        if not (images or values or searches or columns):
            continue
        place = len(found)
        found.append(
            Gallery(
                label=label,
                is_class=record is not None and record.of == "class",
                contents="numbers" if record is None else record.contents,
                sum_of=_sum_of(report, record),
                images=images,
                values=values,
                columns=columns,
                searches=searches,
                figure=_figure(searches, place) if searches and place < _MAX_FIGURES else None,
            )
        )
    return found


def _sum_of(report: AuditReport, record: ReconstructionRecord | None) -> str:
    """A client subtracts what it sent itself; a server sees the sum of all."""
    seat = None if record is None else record.settings.get("seat")
    if seat is not None or report.run.threat_model.controls:
        return "sum of the others\u2019 updates"
    return "sum of the clients\u2019 updates"


def _searches(traces: Sequence[ObjectiveTrace]) -> list[Search]:
    drawable = [trace for trace in traces if trace.steps and trace.values]
    return [Search(trace, line_style(n)) for n, trace in enumerate(drawable[:_MAX_LINES])]


def _figure(searches: Sequence[Search], place: int) -> Markup:
    lines = []
    for search in searches:
        num = min(len(search.trace.steps), len(search.trace.values))
        lines.append((search.trace.steps[:num], search.trace.values[:num], search.style))
    return objective_figure(
        lines,
        name=f"objective-{chr(ord('a') + place)}",
        label=f"Line chart: the attacker\u2019s objective over the iterations of {len(lines)} "
        "searches. The numbers are in the table below.",
    )

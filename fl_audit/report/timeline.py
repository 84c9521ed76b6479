"""Leakage over rounds: what each round alone gives away, one line per attack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fl_audit.report.figures import LineStyle, RoundLine, line_style, rounds_figure
from fl_audit.results import AnyAttackRecord, Estimate, MembershipRecord, RoundLeakage

_MAX_LINES = 14  # in the figure; more cannot be told apart


@dataclass(frozen=True, slots=True)
class TimelineLine:
    """An attack in the figure and in its table."""

    label: str
    style: LineStyle
    points: Sequence[RoundLeakage]


@dataclass(frozen=True, slots=True)
class Timeline:
    """The figure with its legend.

    Attributes:
        num_left_out: Attacks that are not drawn.
    """

    figure: Markup
    lines: list[TimelineLine]
    num_left_out: int

    @property
    def table(self) -> list[tuple[int, list[Estimate | None]]]:
        """Each round with the AUC of each line; None where an attack has none."""
        known = [{point.round: point.auc for point in line.points} for line in self.lines]
        rounds = sorted({number for points in known for number in points})
        return [(number, [points.get(number) for points in known]) for number in rounds]


def timeline(records: Iterable[AnyAttackRecord]) -> Timeline | None:
    """The figure for all attacks that were scored by round; None if there is none."""
    scored = [r for r in records if isinstance(r, MembershipRecord) and r.timeline]
    if not scored:
        return None
    lines = [
        TimelineLine(r.label, line_style(place), sorted(r.timeline, key=lambda p: p.round))
        for place, r in enumerate(scored[:_MAX_LINES])
    ]
    label = (
        f"Line chart: AUC of {len(lines)} membership attacks on each round alone, with 95 % bands, "
        "and the line of chance at 0.5. The numbers are in the table below."
    )
    figure = rounds_figure([_drawn(line) for line in lines], name="timeline", label=label)
    return Timeline(figure, lines, len(scored) - len(lines))


def _drawn(line: TimelineLine) -> RoundLine:
    return RoundLine(
        [p.round for p in line.points],
        [p.auc.value for p in line.points],
        [p.auc.low for p in line.points],
        [p.auc.high for p in line.points],
        line.style,
    )

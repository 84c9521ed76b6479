"""ROC curves: one figure for a few attacks, one for each level of access for many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from fl_audit.report.access import LEVELS, access_of_record
from fl_audit.report.figures import NULL, LineStyle, RocLine, line_style, roc_figure
from fl_audit.results import AnyAttackRecord, MembershipMetrics, MembershipRecord

_MAX_CURVES = 14  # in one figure; more cannot be told apart
_FEW = 8  # curves that one figure shows well, whatever access they need


@dataclass(frozen=True, slots=True)
class LegendLine:
    """A curve of a ROC figure; the null control's points stand beside the attack's."""

    label: str
    access: str
    style: LineStyle
    result: MembershipMetrics
    null: MembershipMetrics | None


@dataclass(frozen=True, slots=True)
class RocPanel:
    """A ROC figure with its legend.

    Attributes:
        access: What its attacks have of the model; None: of more than one level.
        groups: Legend lines by level of access.
        num_left_out: Curves that are not drawn.
    """

    access: str | None
    figure: Markup
    groups: list[tuple[str, list[LegendLine]]]
    num_left_out: int
    has_null: bool


def roc_panels(attacks: Iterable[AnyAttackRecord]) -> list[RocPanel]:
    """The figures for all scored membership attacks, which come sorted by access."""
    scored = [a for a in attacks if isinstance(a, MembershipRecord) and a.result is not None]
    levels = {level: list(own) for level, own in groupby(scored, key=access_of_record)}
    if not scored:
        return []
    if len(scored) <= _FEW or len(levels) == 1:
        return [_panel(scored, None, "roc")]
    return [_panel(levels[level], level, _name(level)) for level in LEVELS if level in levels]


def _name(level: str) -> str:
    return f"roc-{level.replace(' ', '-')}"


def _panel(records: Sequence[MembershipRecord], access: str | None, name: str) -> RocPanel:
    legend = [
        LegendLine(r.label, access_of_record(r), line_style(place), r.result, r.null)
        for place, r in enumerate(records[:_MAX_CURVES])
        if r.result is not None
    ]
    nulls = [_line(line.null, NULL) for line in legend if line.null is not None]
    lines = [_line(line.result, line.style) for line in legend]
    label = (
        f"ROC curves on logarithmic axes: {len(lines)} membership attacks, {len(nulls)} null "
        "controls, and the diagonal of chance. The points are in the tables below."
    )
    return RocPanel(
        access=access,
        figure=roc_figure([*nulls, *reversed(lines)], name=name, label=label),
        groups=[(level, list(own)) for level, own in groupby(legend, key=lambda x: x.access)],
        num_left_out=len(records) - len(legend),
        has_null=bool(nulls),
    )


def _line(metrics: MembershipMetrics, style: LineStyle) -> RocLine:
    roc = metrics.roc
    return RocLine(roc.fpr, roc.tpr, metrics.num_members, metrics.num_non_members, style)

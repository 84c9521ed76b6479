"""The report over several seeds as one self-contained page, in the manner of `html`."""

from __future__ import annotations

from fl_audit.report.html import environment
from fl_audit.report.seeds import BASELINE, SeedsReport


def render_seeds(report: SeedsReport) -> str:
    """The report as one HTML page. The same report gives the same bytes."""
    return (
        environment()
        .get_template("seeds.html.j2")
        .render(
            report=report,
            baseline=BASELINE,
            has_baseline=any(attack.attack == BASELINE for attack in report.attacks),
        )
    )

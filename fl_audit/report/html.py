"""The report as one self-contained page: no network, no script, and everything escaped.

What stands in a report comes from users' files, from clients and from attacks of third parties, so
the page trusts none of it: jinja2 escapes every value, `_finalize` cleans and cuts every text, and
only pictures and links of the expected form become pictures and links.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fl_audit.errors import AuditError, clean_text
from fl_audit.report.figures import (
    CHANCE,
    NULL,
    LineStyle,
    RocLine,
    line_style,
    roc_figure,
    utility_figure,
)
from fl_audit.report.model import AuditReport
from fl_audit.report.verdict import verdict
from fl_audit.results import (
    AnyAttackRecord,
    Estimate,
    MembershipMetrics,
    MembershipRecord,
    UnavailableRecord,
)
from fl_audit.run_directory import RunManifest
from fl_audit.threat_model import PRESETS, parse_knowledge, parse_observations

_SHORT_LIST = 4  # shown as it is; a longer one of equal values is shown as "40 × 1"
_MAX_CURVES = 14  # in one figure; more cannot be told apart
_MAX_ROWS = 500  # of any table or list; what is left out is counted
_PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]*={0,2}")  # base64 of the signature of a PNG
_LINK = re.compile(r"https://[^\s<>\"'`\\]{1,300}")
_METRICS = {
    "auc": "AUC",
    "psnr_db": "PSNR, dB",
    "label_overlap": "label overlap",
    "exact": "exact records",
}


@dataclass(frozen=True, slots=True)
class MetricLine:
    """One metric of an attack, beside its control; or why there is none."""

    name: str
    found: Estimate | None
    control: Estimate | None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class AttackRow:
    """One attack in the table of results.

    Attributes:
        tone: "leak", "none" (nothing detected), "doubt" (not to be trusted) or "silent" (says
            nothing); the page shows it besides the verdict's words, never instead.
    """

    record: AnyAttackRecord
    verdict: str
    tone: str
    lines: list[MetricLine]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run came: rounds that were aggregated, and rounds that were only begun."""

    complete: int
    partial: list[int]
    planned: int | None
    is_finished: bool


@dataclass(frozen=True, slots=True)
class LegendLine:
    """A curve of the ROC figure; the null control's points stand beside the attack's."""

    label: str
    style: LineStyle
    result: MembershipMetrics
    null: MembershipMetrics | None


def render_html(report: AuditReport) -> str:
    """The report as one HTML page. The same report gives the same bytes."""
    legend = _legend(report.attacks)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            run=report.run,
            rows=[_row(record) for record in report.attacks],
            progress=_progress(report),
            legend=legend,
            roc=_roc(legend),
            utility=_utility(report.run),
            chance_style=CHANCE,
            null_style=NULL,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fl_audit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "metric": _metric,
        "number": _number,
        "confidence": lambda estimate: Markup(f"{100 * estimate.confidence:g}\u00a0%"),
        "ranges": _ranges,
        "setting": _setting,
        "head": lambda items: list(islice(items, _MAX_ROWS)),
        "num_left_out": lambda items: max(0, len(items) - _MAX_ROWS),
        "cut": clean_text,
        "png_uri": _png_uri,
    }
    environment.tests["link"] = lambda text: bool(_LINK.fullmatch(text))
    environment.globals |= {"who_could": _who_could, "zip": zip}
    return environment


def _finalize(value: object) -> object:
    """What every value passes on its way into the page; escaping follows."""
    if value is None:
        return "–"
    return clean_text(value) if type(value) is str else value  # Markup is a subclass


def _row(record: AnyAttackRecord) -> AttackRow:
    sentence = verdict(record)
    return AttackRow(record, sentence, _tone(record, sentence), list(_lines(record)))


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
    if isinstance(record, MembershipRecord):
        found = {} if record.result is None else record.result.metrics
        control = {} if record.null is None else record.null.metrics
        refused = {} if record.result is None else record.result.refused
    else:
        found, control, refused = record.metrics, record.baseline, record.refused
    for name, estimate in found.items():
        yield MetricLine(name, estimate, control.get(name))
    for name, reason in refused.items():
        yield MetricLine(name, None, None, reason)


def _progress(report: AuditReport) -> Progress:
    rounds = [] if report.trace is None else report.trace.rounds
    complete = sum(r.state == "aggregated" for r in rounds)
    planned = report.run.planned_rounds
    return Progress(
        complete=complete,
        partial=[r.round for r in rounds if r.state != "aggregated"],
        planned=planned,
        is_finished=report.run.state == "done" and (planned is None or complete >= planned),
    )


def _legend(attacks: Iterable[AnyAttackRecord]) -> list[LegendLine]:
    scored = [a for a in attacks if isinstance(a, MembershipRecord) and a.result is not None]
    return [
        LegendLine(record.label, line_style(place), record.result, record.null)
        for place, record in enumerate(scored[:_MAX_CURVES])
        if record.result is not None
    ]


def _roc(legend: Sequence[LegendLine]) -> Markup | None:
    if not legend:
        return None
    nulls = [_roc_line(line.null, NULL) for line in legend if line.null is not None]
    lines = [_roc_line(line.result, line.style) for line in legend]
    label = (
        f"ROC curves on logarithmic axes: {len(lines)} membership attacks, {len(nulls)} null "
        "controls, and the diagonal of chance. The points are in the tables below."
    )
    return roc_figure([*nulls, *reversed(lines)], name="roc", label=label)


def _roc_line(metrics: MembershipMetrics, style: LineStyle) -> RocLine:
    roc = metrics.roc
    return RocLine(roc.fpr, roc.tpr, metrics.num_members, metrics.num_non_members, style)


def _utility(run: RunManifest) -> list[Markup]:
    if not run.utility:
        return []
    rounds = [u.round for u in run.utility]
    measures = {"accuracy": "accuracy, fraction", "loss": "loss, nats"}
    return [
        utility_figure(
            rounds,
            [None if (e := getattr(u, measure)) is None else e.value for u in run.utility],
            quantity=quantity,
            name=measure,
            label=f"Line chart: {measure} of the global model after each round.",
        )
        for measure, quantity in measures.items()
    ]


def _who_could(record: AnyAttackRecord) -> list[str]:
    """The built-in threat models that grant what the attack used."""
    try:
        requires, knows = parse_observations(record.requires), parse_knowledge(record.knows)
    except AuditError:  # flags of another version
        return []
    return [
        name
        for name, preset in PRESETS.items()
        if not preset.missing(requires) and not knows & ~preset.knows
    ]


def _metric(name: str) -> str:
    """A metric's name in words: "tpr@fpr=0.01" is "TPR at FPR 0.01"."""
    return _METRICS.get(name) or name.replace("tpr@fpr=", "TPR at FPR ")


def _number(value: float, name: str) -> Markup:
    """A metric's value: dB to one place, fractions to three, anything else to four digits."""
    if name == "psnr_db":
        text = f"{value:.1f}"
    elif name in _METRICS or name.startswith("tpr@fpr="):
        text = f"{value:.3f}"
    else:
        text = f"{value:.4g}"
    return Markup(text.replace("-", "−"))


def _png_uri(png: str | None) -> Markup | None:
    """A picture as the address of an image, whole; None unless it is base64 of a PNG."""
    if png is None or not _PNG.fullmatch(png):
        return None
    return Markup("data:image/png;base64,{}").format(png)


def _ranges(numbers: Iterable[int]) -> str:
    """Whole numbers, runs of them joined: 1–4, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)


def _setting(value: Any) -> str:
    """A setting as it would stand in a file, cut to a few lines."""
    if isinstance(value, list) and len(value) > _SHORT_LIST and all(v == value[0] for v in value):
        return f"{len(value)} × {_setting(value[0])}"
    plain = isinstance(value, str)
    return clean_text(value if plain else json.dumps(value, ensure_ascii=False), 200)

"""The report as one self-contained page: no network, no script, and everything escaped.

What stands in a report comes from users' files, from clients and from attacks of third parties, so
the page trusts none of it: jinja2 escapes every value, `_finalize` cleans and cuts every text, and
only pictures and links of the expected form become pictures and links.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fl_audit.detection import CHECKS
from fl_audit.errors import AuditError, clean_text
from fl_audit.report.access import LEVELS, access_of_record
from fl_audit.report.agreement import agreement_matrix
from fl_audit.report.curves import roc_panels
from fl_audit.report.figures import (
    CHANCE,
    MEMBERS,
    NON_MEMBERS,
    NULL,
    bars,
    histogram_figure,
    utility_figure,
)
from fl_audit.report.gallery import galleries
from fl_audit.report.model import AuditReport, ModelSummary
from fl_audit.report.risk import risk_overview
from fl_audit.report.rows import attack_row, overview
from fl_audit.report.timeline import timeline
from fl_audit.results import (
    AnyAttackRecord,
    Histogram,
    KindSlice,
    MembershipMetrics,
    MembershipRecord,
)
from fl_audit.run_directory import RunManifest
from fl_audit.threat_model import PRESETS, parse_knowledge, parse_observations

_SHORT_LIST = 4  # shown as it is; a longer one of equal values is shown as "40 × 1"
_MAX_ROWS = 500  # of any table or list; what is left out is counted
_PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]*={0,2}")  # base64 of the signature of a PNG
_LINK = re.compile(r"https://[^\s<>\"'`\\]{1,300}")
_METRICS = {
    "auc": "AUC",
    "auc_of_most_exposed": "AUC of the most exposed record",
    "balanced_accuracy": "balanced accuracy",
    "psnr_db": "PSNR, dB",
    "label_overlap": "label overlap",
    "exact": "exact records (largest error below 0.000001)",
    "exact_8bit": "exact records at 8 bits (largest error below 1/510)",
    "ssim": "SSIM",
    "recovered": "recovered records (above 30 dB)",
    "recovered_20": "recognised records (above 20 dB)",
    "label_accuracy": "label accuracy",
    "re_identified@1": "re-identified records",
    "median_rank": "median rank of the original (1 is best)",
    "feature_distance": "distance of features (0 is best)",
    "exact_tokens": "tokens in their place",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "token_precision": "precision of the token set",
    "token_recall": "recall of the token set",
    "exact_cells": "right cells",
    "exact_rows": "right rows",
    "accuracy_of_update_alone": "accuracy of the updates alone",
    "gain_over_non_members": "gain over non-members",
    "gain_over_imputer": "gain over the imputer",
    "update_alone_gain_over_imputer": "gain of the updates alone over the imputer",
    "update_alone_gain_over_non_members": "gain of the updates alone over non-members",
    "overlap": "overlap of class shares",
    "overlap_gain": "gain in overlap over the guess",
    "presence_f1": "F1 of classes present",
    "presence_f1_gain": "gain in F1 over the guess",
}
_FRACTIONS = {*_METRICS, "accuracy", "probability"} - {"median_rank", "feature_distance"}
_MODEL_ENGINE = "none: a trained model"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run came: rounds that were aggregated, and rounds that were only begun."""

    complete: int
    partial: list[int]
    planned: int | None
    is_finished: bool


def render_html(report: AuditReport) -> str:
    """The report as one HTML page. The same report gives the same bytes."""
    records = sorted(report.attacks, key=lambda r: LEVELS.index(access_of_record(r)))
    rows = [attack_row(record) for record in records]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            run=report.run,
            is_model=report.model is not None or report.run.engine == _MODEL_ENGINE,
            rows=rows,
            groups=[(level, list(own)) for level, own in groupby(rows, key=lambda r: r.access)],
            overview=overview(rows),
            has_estimates=any(record.kind == "estimate" for record in records),
            timeline=timeline(records),
            galleries=galleries(report),
            canaries=[r for r in records if isinstance(r, MembershipRecord) and r.slices],
            CHECKS=CHECKS,
            progress=_progress(report),
            panels=roc_panels(records),
            risk=risk_overview(rows),
            agreement=None if report.model is None else agreement_matrix(report.model.agreement),
            norms=_norms(report.model),
            utility=_utility(report.run),
            chance_style=CHANCE,
            null_style=NULL,
            member_style=MEMBERS,
            other_style=NON_MEMBERS,
        )
    )


@cache
def environment() -> Environment:
    """The templates, with the filters and tests that they use."""
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
        "sender": _sender,
        "bins": _bins,
        "kinds": _kinds,
    }
    environment.tests["link"] = lambda text: bool(_LINK.fullmatch(text))
    environment.globals |= {"who_could": _who_could, "zip": zip}
    return environment


def _finalize(value: object) -> object:
    """What every value passes on its way into the page; escaping follows."""
    if value is None:
        return "–"
    return clean_text(value) if type(value) is str else value  # Markup is a subclass


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


def _norms(model: ModelSummary | None) -> Markup | None:
    if model is None or model.gradient_norms is None:
        return None
    return histogram_figure(
        model.gradient_norms,
        quantity="log10 of the gradient norm",
        name="norms",
        label="Histogram: norms of gradients, members and non-members. The numbers stand below.",
    )


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


def _who_could(record: AnyAttackRecord, is_model: bool) -> list[str]:
    """The built-in threat models that grant what the attack used; of a model, those outside."""
    try:
        requires, knows = parse_observations(record.requires), parse_knowledge(record.knows)
    except AuditError:  # flags of another version
        return []
    able = {
        name: preset
        for name, preset in PRESETS.items()
        if not preset.missing(requires)
        and not knows & ~preset.knows
        and (preset.who == "observer" or not is_model)
        and (record.activity != "malicious" or preset.activity == "malicious")
        and record.who in (None, preset.who)
    }
    # what one party can do that follows the protocol, several and malicious ones can do, too
    plain = [n for n, p in able.items() if p.activity != "malicious" and p.who != "coalition"]
    return plain or list(able)


def _metric(name: str) -> str:
    """A metric's name in words: "tpr@fpr=0.01" is "TPR at FPR 0.01"."""
    name, space, part = name.partition(" ")  # "auc (mislabelled)": on one kind of canary
    return (_METRICS.get(name) or name.replace("tpr@fpr=", "TPR at FPR ")) + space + part


def _number(value: float, name: str) -> Markup:
    """A metric's value: dB to one place, fractions to three, distances of features to two digits
    (their interval must fit a phone), anything else to four digits.

    A "gain" is a difference of fractions, and has a sign.
    """
    if name == "psnr_db":
        text = f"{value:.1f}"
    elif name == "gain" or "gain_" in name or name.endswith("_gain"):
        text = f"{value:+.3f}"
    elif name in _FRACTIONS or name.startswith(("tpr@fpr=", "auc (")):
        text = f"{value:.3f}"
    elif name == "feature_distance":
        text = f"{value:.2g}"
    else:
        text = f"{value:.4g}"
    return Markup(text.replace("-", "−"))


def _sender(shown: Any, sum_of: str) -> str:
    """Whose update a reconstruction came from: "round 3, client 2", or the sum of several."""
    who = sum_of if shown.client < 0 else f"client {shown.client}"
    return f"round {shown.round}, {who}"


def _bins(histogram: Histogram) -> list[tuple[float, float, float, float]]:
    """Where each bar begins and ends, and the shares of members and of non-members in it."""
    edges, members, others = bars(histogram)
    return [
        (float(left), float(right), float(member), float(other))
        for left, right, member, other in zip(edges[:-1], edges[1:], members, others, strict=True)
    ]


def _kinds(
    slices: Mapping[str, KindSlice],
) -> list[tuple[str, MembershipMetrics, MembershipMetrics | None]]:
    """Kinds of canaries with their figures and those of their control."""
    return [(kind, part.result, part.null) for kind, part in slices.items()]


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

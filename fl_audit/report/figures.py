"""Figures as inline SVG: the same bytes every time, no text from outside, no ids that clash.

Names of attacks come from users' files, so they never enter a figure: the page names the lines in
a legend of its own, where they are escaped.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from fl_audit.results import Histogram

# Okabe & Ito's palette, which colour-blind readers can tell apart; its yellow is lost on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_DASHES = ((), (7, 2.5), (7, 2, 1.5, 2), (3, 1.5))
_INK, _FAINT = "#24292e", "#dfe2e6"
_GREY = "#767b82"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text; the page's style sheet gives it its font
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": _INK,
    "axes.labelsize": 12,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "font.size": 11,
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_POINTS_PER_INCH = 72  # one unit of the SVG; shown at full size, one CSS pixel
_MARGINS = (62, 10, 44, 8)  # left, right, bottom, top: in units of the SVG
_EDGE = 1.5  # how far the axes go on beyond the smallest rate that can be seen, as a factor
_ROOM = 1.06  # kept clear beyond that, for a line along the edge, as a factor
_FEW_DECADES = 1.5  # on a shorter axis, ticks at powers of ten alone would leave one or none
_MOST_BINS = 200  # of a histogram; more than any that fl-audit computes
_SMALL = (150, 56)  # width and height of a small histogram, in units of the SVG
_CHANCE = 0.5  # AUC of a score that knows nothing
_BAND = 0.22  # opacity of one band
_HEADROOM = 1.08  # above the tallest bar, as a factor


@dataclass(frozen=True, slots=True)
class LineStyle:
    """How a line is drawn, here and in the legend of the page."""

    colour: str
    width: float
    dashes: tuple[float, ...] = ()  # on, off, ...: SVG user units; () = solid

    @property
    def dash_array(self) -> str:
        """The dashes as the value of `stroke-dasharray`."""
        return " ".join(f"{length:g}" for length in self.dashes) or "none"


CHANCE = LineStyle(_GREY, 1.0, (6, 4))
NULL = LineStyle(_GREY, 1.1, (1.2, 2))
MEMBERS = LineStyle(_COLOURS[1], 1.7)
NON_MEMBERS = LineStyle(_COLOURS[0], 1.7, (5, 2))  # told apart by dashes, too


@dataclass(frozen=True, slots=True)
class RocLine:
    """One ROC curve, as fractions, with the counts that say how low it can reach."""

    fpr: Sequence[float]
    tpr: Sequence[float]
    num_members: int
    num_non_members: int
    style: LineStyle


@dataclass(frozen=True, slots=True)
class RoundLine:
    """A figure by round, with its interval."""

    rounds: Sequence[int]
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    style: LineStyle


def line_style(place: int) -> LineStyle:
    """The style of the curve at this place: colour and dashes both change, and 28 differ."""
    return LineStyle(_COLOURS[place % len(_COLOURS)], 1.9, _DASHES[place % len(_DASHES)])


def roc_figure(lines: Sequence[RocLine], *, name: str, label: str) -> Markup:
    """ROC curves on logarithmic axes, where low false-positive rates can be seen.

    Args:
        lines: Drawn in this order, the last on top.
        name: Prefix of every id in the figure; unique on the page, `[a-z-]+`.
        label: What the figure shows, for readers who do not see it.
    """
    lowest_fpr = 1 / (_EDGE * max((line.num_non_members for line in lines), default=100))
    lowest_tpr = 1 / (_EDGE * max((line.num_members for line in lines), default=100))
    with _style(name):
        figure, axes = _axes(440, 400)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(lowest_fpr / _ROOM, 1)  # what stands at zero stays clear of the axis
        axes.set_ylim(lowest_tpr, _ROOM)
        _log_ticks(axes, lowest_fpr, lowest_tpr)
        diagonal = [min(lowest_fpr, lowest_tpr) / _ROOM, 1]
        axes.plot(diagonal, diagonal, **_drawn(CHANCE))
        for line in lines:
            fpr, tpr = _points(line, lowest_fpr, lowest_tpr)
            axes.step(fpr, tpr, where="post", **_drawn(line.style))
        axes.set_xlabel("false-positive rate")
        axes.set_ylabel("true-positive rate")
        return _svg(figure, name=name, label=label)


def utility_figure(
    rounds: Sequence[int], values: Sequence[float | None], *, quantity: str, name: str, label: str
) -> Markup:
    """One measure of the global model, round by round. None leaves a gap.

    Args:
        rounds: Server rounds; 0 is before training.
        values: One each.
        quantity: What is on the vertical axis, with its unit.
        name: Prefix of every id in the figure; unique on the page, `[a-z-]+`.
        label: What the figure shows, for readers who do not see it.
    """
    known = [0.0, *(value for value in values if value is not None)]
    drawn = np.asarray([math.nan if v is None else v for v in values], dtype=np.float64)
    with _style(name):
        figure, axes = _axes(340, 220)
        axes.plot(list(rounds), drawn, **_drawn(line_style(0)), marker="o", markersize=4)
        axes.set_ylim(0, 1.08 * max(known) or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("round")
        axes.set_ylabel(quantity)
        return _svg(figure, name=name, label=label)


def rounds_figure(lines: Sequence[RoundLine], *, name: str, label: str) -> Markup:
    """AUC round by round with bands, and the line of chance.

    Args:
        lines: The first is drawn on top.
        name: Prefix of every id in the figure; unique on the page, `[a-z-]+`.
        label: What the figure shows, for readers who do not see it.
    """
    lowest = min([_CHANCE, *(low for line in lines for low in line.lows)])
    highest = max([_CHANCE, *(high for line in lines for high in line.highs)])
    pad = 0.04 * max(highest - lowest, 0.1)
    opacity = _BAND / max(1, len(lines)) ** 0.5  # many bands that lie on one another stay light
    with _style(name):
        figure, axes = _axes(440, 300)
        axes.axhline(_CHANCE, **_drawn(CHANCE))
        for line in reversed(lines):
            colour = line.style.colour
            axes.fill_between(
                line.rounds, line.lows, line.highs, color=colour, alpha=opacity, linewidth=0
            )
        for line in reversed(lines):
            axes.plot(line.rounds, line.values, **_drawn(line.style), marker="o", markersize=3.5)
            if len(line.rounds) == 1:  # a band of no width cannot be seen
                axes.vlines(line.rounds, line.lows, line.highs, color=line.style.colour)
        axes.set_ylim(max(0.0, lowest - pad), min(1.0, highest) + pad)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.set_xlabel("round")
        axes.set_ylabel("AUC of this round alone")
        return _svg(figure, name=name, label=label)


def objective_figure(
    lines: Sequence[tuple[Sequence[int], Sequence[float], LineStyle]], *, name: str, label: str
) -> Markup:
    """Objectives of searches over their iterations; logarithmic where they fall by decades.

    Args:
        lines: Iterations, finite values and style of each search.
        name: Prefix of every id in the figure; unique on the page, `[a-z-]+`.
        label: What the figure shows, for readers who do not see it.
    """
    values = [value for _, own, _ in lines for value in own]
    is_log = min(values) > 0 and max(values) > 100 * min(values)
    with _style(name):
        figure, axes = _axes(440, 260)
        for steps, own, style in lines:
            marker = "o" if len(own) == 1 else "None"  # a line of one point cannot be seen
            axes.plot(steps, own, **_drawn(style), marker=marker, markersize=3.5)
        if is_log:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("iteration")
        axes.set_ylabel("objective")
        return _svg(figure, name=name, label=label)


def histogram_figure(histogram: Histogram, *, quantity: str, name: str, label: str) -> Markup:
    """Shares of members (filled) and of non-members (dashed outline) in the same bins.

    Args:
        quantity: What is on the horizontal axis, with its unit.
        name: Prefix of every id in the figure; unique on the page, `[a-z-]+`.
        label: What the figure shows, for readers who do not see it.
    """
    edges, members, others = bars(histogram)
    with _style(name):
        figure, axes = _axes(400, 240)
        if len(members):
            colour, width = MEMBERS.colour, MEMBERS.width
            axes.stairs(members, edges, fill=True, color=colour, alpha=0.25, linewidth=0)
            axes.stairs(members, edges, color=colour, linewidth=width)
            if others.any():
                axes.stairs(others, edges, **_drawn(NON_MEMBERS))
            pad = 0.01 * (edges[-1] - edges[0])  # the outermost lines are not cut in half
            axes.set_xlim(edges[0] - pad, edges[-1] + pad)
        axes.set_ylim(0, _tallest([histogram]))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.set_xlabel(quantity)
        axes.set_ylabel("share of records")
        return _svg(figure, name=name, label=label)


def small_histograms(histograms: Sequence[Histogram], *, label: str) -> list[Markup]:
    """The same without axes, to be compared with each other: all on one vertical scale.

    Drawn without matplotlib, which takes a second for a dozen of them.
    """
    width, height = _SMALL
    top = _tallest(histograms)
    head = Markup('<svg class="spark" role="img" aria-label="{}" viewBox="0 0 {} {}">')
    found = []
    for histogram in histograms:
        edges, members, others = bars(histogram)
        across = (
            (edges - edges[0]) / (edges[-1] - edges[0]) * (width - 2) + 1 if len(edges) else edges
        )
        filled, dashed = (
            _stairs(across, (height - 2) * (1 - shares / top) + 1, height - 1)
            for shares in (members, others)
        )
        found.append(
            head.format(label, width, height)
            + Markup(
                f'<path d="{filled}" fill="{MEMBERS.colour}" fill-opacity="0.25" '
                f'stroke="{MEMBERS.colour}" stroke-width="1.2"/>'
                f'<path d="{dashed}" fill="none" stroke="{NON_MEMBERS.colour}" '
                f'stroke-width="1.2" stroke-dasharray="3 1.5"/>'
                f'<path d="M0 {height - 1}H{width}" stroke="{_GREY}"/></svg>'
            )
        )
    return found


def bars(
    histogram: Histogram,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Edges, and shares of members and non-members; all empty if it cannot be drawn."""
    num = min(len(histogram.edges) - 1, len(histogram.members), len(histogram.non_members))
    num = min(num, _MOST_BINS)
    edges = np.asarray(histogram.edges[: num + 1], dtype=np.float64)
    span = float(edges[-1]) - float(edges[0]) if num > 0 else 0.0
    if not 0 < span < math.inf or (np.diff(edges) <= 0).any():
        nothing = np.zeros(0)
        return nothing, nothing, nothing
    sides = (histogram.members, histogram.non_members)
    members, others = (np.clip(np.asarray(side[:num], np.float64), 0, 1) for side in sides)
    return edges, members, others


def _tallest(histograms: Sequence[Histogram]) -> float:
    """Where the vertical axis of all these ends."""
    shares = [share for h in histograms for side in bars(h)[1:] for share in side]
    return _HEADROOM * float(max(shares, default=0.0)) or 1.0


def _stairs(edges: NDArray[np.float64], tops: NDArray[np.float64], ground: float) -> str:
    """The outline of bars as the data of an SVG path; neighbours of one height become one."""
    if not len(tops):
        return f"M0 {ground:g}"
    steps = [f"M{edges[0]:.4g} {ground:g}"]
    before = None
    for right, top in zip(edges[1:], tops, strict=True):
        if before == f"{top:.4g}":
            steps.pop()
        else:
            before = f"{top:.4g}"
            steps.append(f"V{before}")
        steps.append(f"H{right:.4g}")
    return "".join([*steps, f"V{ground:g}"])


def _axes(width: int, height: int) -> tuple[Figure, Axes]:
    """Axes in a figure of this size, with fixed margins: the fonts of this machine do not count."""
    left, right, bottom, top = _MARGINS
    figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH))
    figure.patch.set_visible(False)  # the page puts a white card behind it
    axes = figure.add_axes(
        (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - bottom - top) / height,
        )
    )
    return figure, axes


def _drawn(style: LineStyle) -> dict[str, Any]:
    dashes = (0, tuple(length / style.width for length in style.dashes)) if style.dashes else "-"
    return {"color": style.colour, "linewidth": style.width, "linestyle": dashes}


def _points(
    line: RocLine, lowest_fpr: float, lowest_tpr: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve with zeros, which a logarithm has no place for, put on or beyond the edge."""
    num = min(len(line.fpr), len(line.tpr))
    fpr = np.clip(np.asarray(line.fpr[:num], dtype=np.float64), lowest_fpr, 1)
    tpr = np.clip(np.asarray(line.tpr[:num], dtype=np.float64), lowest_tpr / 10, 1)
    return fpr, tpr


def _log_ticks(axes: Axes, lowest_fpr: float, lowest_tpr: float) -> None:
    for axis, lowest in ((axes.xaxis, lowest_fpr), (axes.yaxis, lowest_tpr)):
        is_short = -math.log10(lowest) < _FEW_DECADES
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


@contextmanager
def _style(name: str) -> Iterator[None]:
    """Matplotlib's defaults, whatever the user's own are, and ours on top, for this figure only."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = name
        yield


def _svg(figure: Figure, *, name: str, label: str) -> Markup:
    """The figure as an `<svg>` element that can stand in a page beside others."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    opening = re.search(r"<svg\b[^>]*>", text)
    size = re.search(r'viewBox="([\d. ]+)"', text)
    assert opening is not None  # matplotlib writes both
    assert size is not None
    body = text[opening.end() :]
    # the head describes a file of its own, and its style sheet would apply to the whole page
    body = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r"font-family: [^;]*; ", "", body)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'((?:\bid|href)="#?|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"\n\s*", "\n", body)
    head = Markup('<svg class="plot" role="img" aria-label="{}" viewBox="{}">')
    return head.format(label, size.group(1)) + Markup(body.strip())

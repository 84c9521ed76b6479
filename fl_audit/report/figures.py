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


@dataclass(frozen=True, slots=True)
class RocLine:
    """One ROC curve, as fractions, with the counts that say how low it can reach."""

    fpr: Sequence[float]
    tpr: Sequence[float]
    num_members: int
    num_non_members: int
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

"""Figures: the same bytes every time, valid beside each other, and true to their numbers."""

from __future__ import annotations

import re
from itertools import pairwise

import matplotlib
import pytest

from fl_audit.report.figures import (
    CHANCE,
    MEMBERS,
    NON_MEMBERS,
    RocLine,
    bars,
    histogram_figure,
    line_style,
    roc_figure,
    small_histograms,
    utility_figure,
)
from fl_audit.results import Histogram


def roc(fpr: list[float], tpr: list[float], *, name: str = "roc") -> str:
    line = RocLine(fpr, tpr, num_members=100, num_non_members=1000, style=line_style(0))
    return str(roc_figure([line], name=name, label="ROC"))


def utility(values: list[float | None], *, name: str = "accuracy") -> str:
    rounds = list(range(len(values)))
    return str(utility_figure(rounds, values, quantity="accuracy", name=name, label="Accuracy"))


def shares(members: list[float], others: list[float], top: float = 1.0) -> Histogram:
    edges = [top * i / len(members) for i in range(len(members) + 1)]
    return Histogram(edges=edges, members=members, non_members=others)


def drawn_histogram(histogram: Histogram, *, name: str = "risk-aa") -> str:
    return str(histogram_figure(histogram, quantity="score", name=name, label="Scores"))


def drawn_line(svg: str, colour: str) -> list[tuple[float, float]]:
    """Vertices of the last line of this colour that is no symbol."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*fill: none;[^>]*stroke: {colour.lower()}', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", found[-1])]


def test_the_same_figure_has_the_same_bytes_whatever_the_users_style() -> None:
    plain = roc([0, 0.1, 1], [0, 0.5, 1]), utility([0.1, 0.5])
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert (roc([0, 0.1, 1], [0, 0.5, 1]), utility([0.1, 0.5])) == plain
    assert dict(matplotlib.rcParams) == before


def test_ids_do_not_clash_and_all_references_resolve() -> None:
    figures = [roc([0, 1], [0, 1]), utility([0.1]), utility([0.1], name="loss")]
    figures.append(drawn_histogram(shares([0.5, 0.5], [0.1, 0.9])))
    page = "".join(figures)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    for name, svg in zip(("roc", "accuracy", "loss", "risk-aa"), figures, strict=True):
        used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg)
        assert used
        assert {a or b for a, b in used} <= set(re.findall(r'\bid="([^"]*)"', svg))
        assert all(entry.startswith(f"{name}-") for entry in re.findall(r'\bid="([^"]*)"', svg))


def test_nothing_but_one_svg_element_remains() -> None:
    svg = roc([0, 1], [0, 1])
    assert svg.startswith("<svg ")
    assert svg.endswith("</svg>")
    assert not re.search(r"<style|<metadata|<!--|<\?xml|<!DOCTYPE|https?:|xlink|<script", svg)
    assert 'role="img" aria-label="ROC"' in svg


def test_the_label_of_a_figure_is_escaped() -> None:
    svg = roc_figure([], name="roc", label="\"><script>alert('1')</script>")
    assert "<script" not in svg
    assert "&#34;&gt;&lt;script&gt;" in svg


def test_a_roc_curve_is_drawn_in_steps_and_never_above_its_points() -> None:
    # ties: both rates jump from (0, 0) to (0.1, 0.5); the line must not cut that corner
    points = drawn_line(roc([0, 0.1, 1], [0, 0.5, 1]), "#0072b2")
    for (x0, y0), (x1, y1) in pairwise(points):
        assert x0 == x1 or y0 == y1
        assert x1 >= x0
        assert y1 <= y0  # SVG: up is less
    corner = points.index(max((p for p in points if p[1] < points[0][1]), key=lambda p: p[1]))
    assert points[corner - 1][1] == points[0][1]  # still at zero up to that rate
    assert points[corner - 1][0] == points[corner][0]


def test_a_perfect_attack_reaches_the_top_at_the_left_edge() -> None:
    points = drawn_line(roc([0, 0, 1], [0, 1, 1]), "#0072b2")
    assert points[0][0] == points[1][0]
    top = min(y for _, y in points)
    assert (points[0][0], top) in points
    right = max(x for x, _ in points)
    chance = drawn_line(roc([0, 0, 1], [0, 1, 1]), CHANCE.colour)
    assert (right, top) == pytest.approx(chance[-1])


@pytest.mark.parametrize(
    ("fpr", "tpr"), [([], []), ([0.0], [0.0]), ([0.0, 1.0], [0.0]), ([-1.0, 2.0], [-1.0, 2.0])]
)
def test_a_damaged_curve_still_gives_a_figure(fpr: list[float], tpr: list[float]) -> None:
    assert roc(fpr, tpr).startswith("<svg ")


def test_axes_reach_as_low_as_the_counts_allow() -> None:
    few = RocLine([0, 1], [0, 1], num_members=5, num_non_members=5, style=line_style(0))
    many = RocLine([0, 1], [0, 1], num_members=5, num_non_members=20_000, style=line_style(1))
    short = str(roc_figure([few], name="roc", label=""))
    assert ">0.2<" in short  # less than a decade: ticks between powers of ten
    assert ">0.0001<" in str(roc_figure([few, many], name="roc", label=""))


@pytest.mark.parametrize("values", [[], [None], [0.0], [0.0, 0.0], [1.0, None, 2.0], [-1.0, -2.0]])
def test_any_measurements_give_a_figure_and_a_missing_one_leaves_a_gap(
    values: list[float | None],
) -> None:
    svg = utility(values)
    assert svg.startswith("<svg ")
    assert "nan" not in svg


def test_line_styles_differ_in_colour_and_in_dashes() -> None:
    styles = [line_style(place) for place in range(28)]
    assert len(set(styles)) == 28
    for one, other in pairwise(styles):
        assert one.colour != other.colour
        assert one.dashes != other.dashes
    assert len({style.dashes for style in styles[:4]}) == 4
    assert line_style(0).dash_array == "none"


def test_histograms_have_the_same_bytes_and_no_text_of_their_own() -> None:
    histogram = shares([0.5, 0.5], [0.1, 0.9])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        styled = drawn_histogram(histogram)
    assert styled == drawn_histogram(histogram)
    small = small_histograms([histogram, histogram], label='"><script>')
    assert small == small_histograms([histogram, histogram], label='"><script>')
    assert "<script" not in "".join(small)
    assert set(re.findall(r">([^<>\n]+)<", "".join(small))) == set()


def test_bars_are_as_high_as_their_shares_and_members_look_different() -> None:
    svg = drawn_histogram(shares([0.2, 0.8], [0.4, 0.6]))
    heights = {}
    for style in (MEMBERS, NON_MEMBERS):
        points = drawn_line(svg, style.colour)
        ground = max(y for _, y in points)
        heights[style] = sorted({round(ground - y, 3) for _, y in points} - {0.0})
    low, high = heights[MEMBERS]
    assert high / low == pytest.approx(4, rel=1e-3)
    assert heights[NON_MEMBERS][0] / low == pytest.approx(2, rel=1e-3)
    assert MEMBERS.dashes != NON_MEMBERS.dashes


def test_small_histograms_share_one_scale() -> None:
    low, high = (
        re.findall(r"V([\d.]+)H", str(svg))[0]
        for svg in small_histograms([shares([0.2], [0.2]), shares([0.4], [0.4])], label="")
    )
    assert (55 - float(high)) / (55 - float(low)) == pytest.approx(2, rel=1e-2)


@pytest.mark.parametrize(
    "histogram",
    [
        Histogram(edges=[], members=[], non_members=[]),
        Histogram(edges=[0], members=[1], non_members=[1]),
        Histogram(edges=[0, 1], members=[], non_members=[1]),
        Histogram(edges=[0, 1, 2], members=[1], non_members=[0.5, 0.5]),
        Histogram(edges=[1, 0], members=[1], non_members=[1]),
        Histogram(edges=[0, 0], members=[1], non_members=[1]),
        Histogram(edges=[-1e308, 1e308], members=[1], non_members=[1]),
        Histogram(edges=[1e300, 1.1e300], members=[1e300], non_members=[-5]),
        Histogram(edges=[0, 5e-324], members=[1], non_members=[1]),
        Histogram(edges=[0, 1], members=[0], non_members=[0]),
        Histogram(edges=list(range(5001)), members=[1.0] * 5000, non_members=[0.0] * 5000),
    ],
)
def test_a_damaged_histogram_still_gives_a_figure(histogram: Histogram) -> None:
    edges, members, others = bars(histogram)
    assert len(members) == len(others) == max(0, len(edges) - 1) <= 200
    for svg in (drawn_histogram(histogram), str(small_histograms([histogram], label="")[0])):
        assert svg.startswith("<svg ")
        assert "nan" not in svg
        assert "inf" not in svg
        assert len(svg) < 60_000

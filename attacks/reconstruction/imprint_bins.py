"""Imprint layers: rows that measure one number of each record, with a threshold each.

A row fires for records whose measure <w, x> is above its threshold. *Cumulative* rows (ReLU) hold
the sum of all records above, so neighbours differ by the records in the bin between their
thresholds. *Sparse* rows (clamped to [0, `SPARSE_TOP`]) hold those of their own bin. Thresholds lie
at the quantiles of records of the server's own, so that bins are equally likely: one of B records
is alone in one of K bins with probability (1 - 1/K)^(B-1).

References:
    Fowl et al., "Robbing the Fed", ICLR 2022. https://arxiv.org/abs/2110.13057
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from attacks.reconstruction.peeling import most_noise
from attacks.reconstruction.planted import quiet_variance
from fl_audit.errors import InputError

Matrix = NDArray[np.float64]
Kind = Literal["cumulative", "sparse"]
SPARSE_TOP = 1e-3
"""Where sparse rows are clamped: small, so that the layer hardly moves what comes behind it."""
_WAVES = 4  # lowest frequencies, in either way, that pictures are measured in
_TRIED = 16  # directions that other records are measured in
_SMOOTHING = 15  # points that stand for one measure
_FAR = 2.0  # ranges of the measures that the outer thresholds lie outside
_PARALLEL = 1e-4  # rows whose unit vectors differ by less measure the same
_MEETS = 0.05  # share of a bin by which two sparse rows may miss each other, in float32
_REACH = 1e-10  # of the largest square: below it, arithmetic explains a step


@dataclass(frozen=True, slots=True, eq=False)
class Imprint:
    """Rows of one measure.

    Attributes:
        direction: w, unit L2 norm, shape (d,).
        edges: Thresholds in units of <w, x>, ascending, shape (K,); sparse: (K + 1,).
    """

    direction: Matrix
    edges: Matrix

    def rows(self, kind: Kind) -> tuple[Matrix, Matrix]:
        """Weights (K, d) and biases (K,) of the layer.

        Sparse rows go from 0 at the lower edge of their bin to `SPARSE_TOP` at the upper one.
        """
        if kind == "cumulative":
            return np.tile(self.direction, (len(self.edges), 1)), -self.edges
        slopes = SPARSE_TOP / np.diff(self.edges)
        return slopes[:, None] * self.direction, -slopes * self.edges[:-1]


def fit_imprints(
    proxy: Matrix,
    labels: NDArray[np.int64],
    bins: int,
    *,
    input_shape: tuple[int, ...],
    directions: int = 1,
    kind: Kind = "cumulative",
    rng: np.random.Generator,
) -> list[Imprint]:
    """Imprints whose bins are equally likely for records like the server's own.

    Of the directions that are tried, those are taken in which records of one class spread most
    evenly over bins that were fitted on the other classes: they carry over to other records.

    Args:
        proxy: Records like the clients', shape (m, d), m >= 2.
        labels: Their classes, shape (m,).
        bins: Of each imprint, K >= 2.
        directions: How many imprints.
        rng: Draws directions where records are no pictures.

    Raises:
        InputError: If there are too few records, or all measure alike.
    """
    if len(proxy) < 2 or bins < 2:
        raise InputError(
            "auxiliary records, bins",
            (len(proxy), bins),
            "an imprint needs at least 2 records like the clients', and 2 bins",
            "Give the adversary some: [game] auxiliary = 1000.",
        )
    tried = _directions(input_shape, max(_TRIED, directions), rng)
    measures = proxy @ tried.T
    usable = np.flatnonzero(np.ptp(measures, axis=0) > 0)
    if len(usable) < directions:
        raise InputError(
            "auxiliary records",
            len(proxy),
            "they are all alike, so no measure tells them apart",
            "Give the adversary different records.",
        )
    uneven = [_collisions(measures[:, place], labels, bins) for place in usable]
    chosen = usable[np.argsort(uneven, kind="stable")[:directions]]
    return [Imprint(tried[place], _edges(measures[:, place], bins, kind=kind)) for place in chosen]


def alone(batch: int, bins: int) -> float:
    """Probability that a record is alone in its bin, if bins are equally likely."""
    return float((1 - 1 / bins) ** (batch - 1))


def bin_sums(
    rows: Matrix, biases: Matrix, sums: Matrix, rounding: Matrix
) -> tuple[Imprint, Matrix, Matrix]:
    """Sums over the records of each bin, from the rows of one imprint.

    Cumulative rows between two occupied bins hold the same sum. So they are fitted together: the
    piecewise constant that is nearest in least squares, with a price on each step that noise alone
    does not pay. Noise falls with the number of rows between.

    Args:
        rows: Parallel rows, shape (K, d).
        biases: Shape (K,).
        sums: Change of (row, bias), shape (K, d + 1).
        rounding: Variance of one entry that float32 explains, shape (K,).

    Returns:
        The imprint as it was sent, sums of the bins (K, d + 1) in its order (0 where no record is),
        and the noise variance of one entry of each (K,).
    """
    imprint, order = imprint_of(rows, biases), np.argsort(_edge_of(rows, biases), kind="stable")
    sums, rounding = sums[order], rounding[order]
    if len(imprint.edges) == len(rows) + 1:  # sparse: each row is its bin
        quiet = quiet_variance(np.einsum("kd,kd->k", sums, sums), sums.shape[1])
        return imprint, sums, np.maximum(quiet, rounding)
    steps, variance = _steps(sums, rounding)
    return imprint, steps, variance


def imprint_of(rows: Matrix, biases: Matrix) -> Imprint:
    """The imprint that parallel rows (K, d) with biases (K,) make.

    Rows whose bin ends, at an answer of `SPARSE_TOP`, where the next row's begins are sparse.
    """
    norms = np.linalg.norm(rows, axis=1)
    edges = _edge_of(rows, biases)
    order = np.argsort(edges, kind="stable")
    edges, norms = edges[order], norms[order]
    tops = edges + SPARSE_TOP / norms
    gaps = np.diff(edges)
    is_sparse = bool((np.abs(tops[:-1] - edges[1:]) <= _MEETS * gaps).all())
    direction: Matrix = rows[order[0]] / norms[0]
    return Imprint(direction, np.append(edges, tops[-1]) if is_sparse else edges)


def _edge_of(rows: Matrix, biases: Matrix) -> Matrix:
    """Measure from which on each row fires, shape (K,)."""
    edge: Matrix = -biases / np.linalg.norm(rows, axis=1)
    return edge


def parallel_groups(rows: Matrix) -> list[NDArray[np.int64]]:
    """Places of rows that measure the same; rows that none is parallel to are left out."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    free, groups = np.ones(len(rows), np.bool_), []
    for place in range(len(rows)):
        if free[place]:
            own = free & (((unit - unit[place]) ** 2).sum(axis=1) < _PARALLEL**2)
            free &= ~own
            if own.sum() > 1:
                groups.append(np.flatnonzero(own))
    return groups


def bin_of(imprint: Imprint, records: Matrix, num: int) -> NDArray[np.bool_]:
    """Which of the first `num` bins records (n, d) fall into, shape (n, num)."""
    place = np.searchsorted(imprint.edges, records @ imprint.direction, side="right") - 1
    result: NDArray[np.bool_] = place[:, None] == np.arange(num)
    return result


def _directions(input_shape: tuple[int, ...], num: int, rng: np.random.Generator) -> Matrix:
    """Unit rows (n, d): cosine waves over pictures, which all their channels share."""
    size = int(np.prod(input_shape))
    if len(input_shape) != 3 or min(input_shape[1:]) < 2 * _WAVES:
        drawn = rng.normal(size=(num, size))
        unit: Matrix = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return unit
    channels, height, width = input_shape
    side = int(np.ceil(np.sqrt(max(num, _WAVES**2))))
    down = np.cos(np.pi * np.outer(np.arange(side), (np.arange(height) + 0.5) / height))
    across = np.cos(np.pi * np.outer(np.arange(side), (np.arange(width) + 0.5) / width))
    waves = np.einsum("uh,vw->uvhw", down, across).reshape(-1, 1, height, width)
    flat = np.repeat(waves, channels, axis=1).reshape(len(waves), size)
    result: Matrix = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return result


def _collisions(measures: Matrix, labels: NDArray[np.int64], bins: int) -> float:
    """How often two records of a class share a bin that was fitted on the other classes."""
    shared = []
    classes = np.unique(labels)
    for one in classes:
        own = labels == one
        if own.sum() < 2 or len(classes) < 2:
            own = np.ones(len(labels), np.bool_)
        others = measures[~own] if not own.all() else measures
        edges = _edges(others, bins, kind="cumulative")
        counts = np.bincount(np.searchsorted(edges, measures[own]), minlength=bins + 1)
        total = int(own.sum())
        shared.append(float((counts * (counts - 1.0)).sum()) / (total * (total - 1)))
    return float(np.mean(shared))


def _edges(measures: Matrix, bins: int, *, kind: Kind) -> Matrix:
    """Quantiles of the smoothed distribution, and edges that nothing lies outside of."""
    points = stats.norm.ppf((np.arange(_SMOOTHING) + 0.5) / _SMOOTHING)
    spread = float(np.subtract(*np.percentile(measures, [75, 25]))) / 1.349
    deviation = float(measures.std())
    width = (min(spread, deviation) or deviation) * len(measures) ** (-1 / 3)
    smooth = (measures[:, None] + width * points).ravel()
    inner = np.quantile(smooth, np.arange(1, bins) / bins)
    reach = _FAR * float(np.ptp(smooth)) or 1.0
    ends = [float(smooth.max()) + reach] if kind == "sparse" else []
    return np.concatenate([[float(smooth.min()) - reach], inner, ends])


def _steps(sums: Matrix, rounding: Matrix) -> tuple[Matrix, Matrix]:
    """Steps of the piecewise constant nearest to cumulative sums, and their variance."""
    num, size = sums.shape
    apart = np.diff(sums, axis=0)
    energy = np.einsum("kd,kd->k", apart, apart) / 2
    noise = quiet_variance(energy, size) if num > 2 else 0.0
    variance = max(noise, float(rounding.max()))
    square = float(np.einsum("kd,kd->k", sums, sums).max())
    price = max(variance * most_noise(size), _REACH * square)
    starts = [*_segments(sums, price), num]
    levels = [sums[a:b].mean(axis=0) for a, b in pairwise(starts)]
    counts = np.diff(starts)
    steps, own = np.zeros_like(sums), np.full(num, variance)
    for place, end in enumerate(starts[1:]):
        following = levels[place + 1] if place + 1 < len(levels) else 0.0
        steps[end - 1] = levels[place] - following
        after = variance / counts[place + 1] if place + 1 < len(levels) else 0.0
        own[end - 1] = variance / counts[place] + after
    return steps, own


def _segments(sums: Matrix, price: float) -> list[int]:
    """First row of each segment, by dynamic programming over all ways to cut."""
    num = len(sums)
    totals = np.vstack([np.zeros(sums.shape[1]), np.cumsum(sums, axis=0)])
    products = totals @ totals.T
    squares = np.append(0.0, np.cumsum(np.einsum("kd,kd->k", sums, sums)))
    best, back = np.zeros(num + 1), np.zeros(num + 1, dtype=np.int64)
    for end in range(1, num + 1):
        first = np.arange(end)
        whole = products[end, end] + products[first, first] - 2 * products[end, first]
        cost = best[first] + squares[end] - squares[first] - whole / (end - first)
        cost[1:] += price
        back[end] = int(cost.argmin())
        best[end] = cost[back[end]]
    starts = [int(back[num])]
    while starts[-1] > 0:
        starts.append(int(back[starts[-1]]))
    return starts[::-1]

"""Peeling: which records are behind sums whose members a candidate itself tells.

A malicious server plants rows that fire for some records of a batch. All rows of one server have
the same outgoing weights, so a record i adds the same vector g_i (x_i, 1) to the gradient (row,
bias) of every row that it fires, and nothing to the others. A row that one record fired alone gives
that record; whoever knows a record knows which rows it fires, takes it out of them, and finds new
rows with a single record in them. This is how sparse-graph codes are decoded.

Two rows that hold the same vector were fired by the same records, and that these are several of
them twice is unlikely: agreement, and not the truth, tells records from mixtures.

References:
    Luby, Mitzenmacher, Shokrollahi, Spielman, "Efficient erasure correcting codes", 2001.
    https://doi.org/10.1109/18.910575
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Belongs = Callable[[Matrix], NDArray[np.bool_]]
"""Records (n, d) -> which of r sums each would be in, shape (n, r)."""

_DEVIATIONS = 6.0  # of a chi-square: noise alone passes for a record once in 1e9 rows
_SKETCH = 32  # dimensions in which vectors are compared
_ALIKE = 0.05  # and they agree only if their squared distance is below this share of a square
_ROUNDING = 1e-10  # or below this one, whatever the noise is said to be
_OFF_UNIT = 0.05  # share of the unit that a signal may be off, besides noise
_NOISY = 1e-7  # squared share of a record that is noise: above it, its measure is not exact
_SLACK = 0.01  # share of the range that an input may be outside, besides noise
_FIRM = 2  # sums that agree: from here on a record counts as confirmed
_PASSES = 100


@dataclass(frozen=True, slots=True, eq=False)
class Peeled:
    """What came out of the sums.

    Attributes:
        records: Shape (n, d), in the order in which they were found.
        signals: What multiplies each, g_i, shape (n,).
        votes: Sums that held this record alone at the same time, shape (n,); 1 = no other sum
            confirms that it is one record and not a mixture.
    """

    records: Matrix
    signals: Matrix
    votes: NDArray[np.int64]


def peel(
    sums: Matrix,
    variance: Matrix,
    belongs: Belongs,
    *,
    bounds: tuple[Matrix, Matrix],
    unit: float | None,
    families: NDArray[np.int64] | None = None,
    rng: np.random.Generator,
) -> Peeled:
    """Take records out of sums, one after the other.

    Args:
        sums: Sum over its records of g_i (x_i, 1), shape (r, d + 1).
        variance: Noise variance of one entry of each sum, shape (r,), >= 0.
        belongs: Tells which sums a record is in.
        bounds: Smallest and largest value of each input, shape (d,) each: whatever lies outside is
            a mixture of records with signals of both signs.
        unit: |g_i|, where it is the same for all records: two of them then have 0 or twice as
            much. None: signals differ, and only sums that agree are taken out of others.
        families: Of each sum, shape (r,): a record is in one sum of a family only. None: sums have
            nothing to do with one another.
        rng: Draws the directions in which sums are compared.

    Returns:
        At most r records. What no other sum confirms is among them, with one vote.
    """
    own = np.arange(len(sums)) if families is None else families
    state = _Sums(sums, variance, belongs, families=own, bounds=bounds, unit=unit)
    directions = rng.normal(size=(sums.shape[1], _SKETCH)) / np.sqrt(_SKETCH)
    least = _FIRM
    for _ in range(_PASSES):
        if state.take_alone(directions, least):
            least = _FIRM
        elif unit is not None and least == _FIRM:
            least = 1  # the size of the signal speaks for one record
        else:
            break
    if unit is None:  # last, and all at once: a mixture among them would spoil other sums
        state.take_alone(directions, 1)
    vectors = np.array(state.vectors).reshape(-1, sums.shape[1])
    votes = np.array(state.votes, dtype=np.int64)
    return Peeled(vectors[:, :-1] / vectors[:, -1:], vectors[:, -1], votes)


class _Sums:
    """Sums as they shrink, and what was taken out of them."""

    def __init__(
        self,
        sums: Matrix,
        variance: Matrix,
        belongs: Belongs,
        *,
        families: NDArray[np.int64],
        bounds: tuple[Matrix, Matrix],
        unit: float | None,
    ) -> None:
        self.vectors: list[Matrix] = []
        self.votes: list[int] = []
        self._left = sums.astype(np.float64)
        self._variance = variance.astype(np.float64)
        self._belongs, self._families = belongs, families
        self._bounds, self._unit = bounds, unit

    def take_alone(self, directions: Matrix, least: int) -> int:
        """Take out every record that at least so many sums hold alone. How many there were.

        Sums that changed on the way wait for the next call.
        """
        active = _hold_more(self._left, self._variance)
        rows = self._candidates(active)
        groups = [rows[own] for own in self._groups(rows, directions) if own.sum() >= least]
        if not groups:
            return 0
        vectors = np.stack([self._left[group].mean(axis=0) for group in groups])
        members = self._members(vectors, groups)
        changed, taken = np.zeros(len(active), np.bool_), 0
        for group, vector, member in zip(groups, vectors, members, strict=True):
            votes = int(member[group].sum())
            if changed[group].any() or votes < least or not active[member].all():
                continue
            self._variance[member] += self._variance[group].mean() / len(group)
            self._left[member] -= vector
            self._left[group] = 0.0  # what was alone is explained, and its noise with it
            changed |= member
            self.vectors.append(vector)
            self.votes.append(votes)
            taken += 1
        return taken

    def _members(self, vectors: Matrix, groups: list[NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Which sums each record is in, shape (n, r)."""
        members = self._belongs(vectors[:, :-1] / vectors[:, -1:])
        for vector, member, group in zip(vectors, members, groups, strict=True):
            noise = len(vector) * float(self._variance[group].mean())
            if noise > _NOISY * float(vector @ vector):  # a noisy record may measure another bin
                member[np.isin(self._families, self._families[group])] = False
                member[group] = True
        return members

    def _candidates(self, active: NDArray[np.bool_]) -> NDArray[np.int64]:
        rows = np.flatnonzero(active)
        rows = rows[could_be_records(self._left[rows], self._variance[rows], self._bounds)]
        if self._unit is not None:
            error = _DEVIATIONS * np.sqrt(self._variance[rows])
            off = np.abs(np.abs(self._left[rows, -1]) - self._unit)
            rows = rows[off <= _OFF_UNIT * self._unit + error]
        return rows

    def _groups(self, rows: NDArray[np.int64], directions: Matrix) -> list[NDArray[np.bool_]]:
        """Masks over `rows` of those that hold one vector, the largest group first."""
        sketch = self._left[rows] @ directions
        squares = (sketch**2).sum(axis=1)
        apart = squares[:, None] + squares - 2 * sketch @ sketch.T
        noise = 3 * self._left.shape[1] * self._variance[rows]  # 3: few directions are not exact
        limit = np.minimum(noise[:, None] + noise, _ALIKE * squares[:, None])
        near = apart <= np.maximum(limit, _ROUNDING * squares[:, None])
        groups, free = [], np.ones(len(rows), np.bool_)
        for place in np.argsort(-near.sum(axis=1), kind="stable"):
            if free[place]:
                groups.append(near[place] & free)
                free &= ~near[place]
        return groups


def could_be_records(
    sums: Matrix, variance: Matrix, bounds: tuple[Matrix, Matrix]
) -> NDArray[np.bool_]:
    """Which sums, divided by their last entry, are an input that could be, shape (r,).

    Args:
        sums: Shape (r, d + 1).
        variance: Noise of one entry of each, shape (r,).
        bounds: Smallest and largest value of each input, shape (d,) each.
    """
    error, signal = _DEVIATIONS * np.sqrt(variance), np.abs(sums[:, -1])
    fits = _hold_more(sums, variance) & (signal > error)
    low, high = bounds
    rows = np.flatnonzero(fits)
    widest = float((high - low).max())
    slack = (_SLACK * widest + error[rows] / signal[rows])[:, None]
    records = sums[rows, :-1] / sums[rows, -1:]
    fits[rows] = ((records >= low - slack) & (records <= high + slack)).all(axis=1)
    return fits


def _hold_more(sums: Matrix, variance: Matrix) -> NDArray[np.bool_]:
    """Which sums hold more than noise, shape (r,)."""
    energy = np.einsum("rd,rd->r", sums, sums)
    holds: NDArray[np.bool_] = energy > variance * most_noise(sums.shape[1])
    return holds


def most_noise(size: int) -> float:
    """What a sum of so many squared standard normals stays below, but once in 1e9."""
    return size + _DEVIATIONS * float(np.sqrt(2 * size)) + _DEVIATIONS**2

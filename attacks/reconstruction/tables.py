"""Rows of a table as model inputs: which columns belong to one category, which hold numbers.

A category with k values is k columns of which one is 1 and the others 0. Searching them as numbers
wastes what is known: a softmax over each group keeps the search among mixtures of real categories,
and at the end the likeliest one is taken.

References:
    Vero, Balunovic, Dimitrov, Vechev, "TabLeak: Tabular Data Leakage in Federated Learning",
    ICML 2023. https://arxiv.org/abs/2210.01785
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_audit.errors import InputError

Values = NDArray[np.float64]
Tensor = torch.Tensor

NUMBER_TOLERANCE = 0.319  # standard deviations within which a number counts as found (TabLeak)
_FEW = 5  # distinct numbers below which even steps between them may be chance
_UNEVEN = 1e-3  # of a step: how far a number may lie off the grid, for float32 inputs
_MARGIN = 0.5  # of the range of numbers seen: how far beyond it others may lie


@dataclass(frozen=True, slots=True, eq=False)
class TableLayout:
    """What the columns of a table are.

    Attributes:
        groups: Columns of each category, two or more each.
        numeric: All other columns, shape (k,).
        spread: Standard deviation of each numeric column, > 0, shape (k,).
        low, high: Smallest and largest number to expect in it, shape (k,); infinite if not known.
        first, step: Its numbers are `first` plus multiples of `step`; 0 if they have no such grid.
    """

    groups: tuple[tuple[int, ...], ...]
    numeric: NDArray[np.int64]
    spread: Values
    low: Values
    high: Values
    first: Values
    step: Values

    @property
    def num_columns(self) -> int:
        """Columns of the encoded table."""
        return len(self.numeric) + sum(len(group) for group in self.groups)

    def decode(self, searched: Tensor) -> Tensor:
        """Rows from unbounded numbers: softmax within each category; numbers as they are.

        Args:
            searched: Shape (..., columns).
        """
        parts = [searched[..., torch.as_tensor(self.numeric, device=searched.device)]]
        parts += [searched[..., list(group)].softmax(-1) for group in self.groups]
        return torch.cat(parts, dim=-1)[..., self._places(searched.device)]

    def snap(self, rows: Values, *, to_grid: bool) -> Values:
        """Rows as a table can hold them: one category of each, and numbers in range.

        Args:
            rows: Shape (..., columns).
            to_grid: Whether numbers go to the nearest on their grid: right if they are known to
                within half a step, and otherwise one more error.
        """
        found = np.zeros(rows.shape)
        for group in self.groups:
            best = np.take(group, rows[..., list(group)].argmax(-1))
            np.put_along_axis(found, best[..., None], 1.0, axis=-1)
        numbers = np.clip(rows[..., self.numeric], self.low, self.high)
        if to_grid:
            step = np.where(self.step > 0, self.step, 1.0)
            on_grid = self.first + step * np.round((numbers - self.first) / step)
            numbers = np.where(self.step > 0, on_grid, numbers)
        found[..., self.numeric] = numbers
        return found

    def right(
        self, rows: Values, truth: Values, *, tolerance: float = NUMBER_TOLERANCE
    ) -> NDArray[np.bool_]:
        """Which columns of the table are right, numeric ones first, then categories.

        Args:
            rows: Encoded, shape (..., columns).
            truth: Of the same shape.
            tolerance: For numbers, as a multiple of `spread`.

        Returns:
            Shape (..., numeric + categories).
        """
        error = np.abs(rows - truth)[..., self.numeric]
        parts = [error <= tolerance * self.spread]
        for group in self.groups:
            same = rows[..., list(group)].argmax(-1) == truth[..., list(group)].argmax(-1)
            parts.append(same[..., None])
        found: NDArray[np.bool_] = np.concatenate(parts, axis=-1)
        return found

    def _places(self, device: torch.device) -> Tensor:
        """Where each column is after numbers and groups were put one after another."""
        order = [*self.numeric, *(column for group in self.groups for column in group)]
        return torch.as_tensor(np.argsort(order), device=device)


def infer_layout(
    inputs: NDArray[np.floating], groups: Sequence[Sequence[int]] | None = None
) -> TableLayout:
    """The layout of a table from rows like the clients'.

    Categories are runs of neighbouring columns of 0 and 1 that sum to 1 in every row. A category
    that no row has goes to the run that it stands before, or at the end to the last.

    Args:
        inputs: Encoded rows, shape (n, columns).
        groups: Columns of each category, if they are known.

    Raises:
        InputError: If there is no table, or a group does not fit it.
    """
    rows = np.asarray(inputs, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        raise InputError(
            "auxiliary inputs",
            rows.shape,
            "a table has rows and columns, and at least one row is needed",
            "Set game.auxiliary to at least 1, on a data set of flat records.",
        )
    if not np.isfinite(rows).all():
        raise InputError(
            "auxiliary inputs", "NaN or infinity", "must be finite", "Fill missing values."
        )
    found = _find_groups(rows) if groups is None else _checked(groups, rows.shape[1])
    numeric = _others(found, rows.shape[1])
    numbers = rows[:, numeric]
    low, high = numbers.min(0), numbers.max(0)
    margin = _MARGIN * (high - low)
    grids = [_grid(column) for column in numbers.T]
    first, step = np.array(grids, dtype=np.float64).reshape(-1, 2).T
    is_flag = (high > low) & (step == high - low)  # two values only: none lies beyond
    margin = np.where(is_flag, 0.0, margin)
    return TableLayout(
        found,
        numeric,
        np.where(high > low, numbers.std(0), 1.0),
        np.where(high > low, low - margin, -np.inf),
        np.where(high > low, high + margin, np.inf),
        first,
        step,
    )


def plain_layout(groups: Sequence[Sequence[int]], num_columns: int) -> TableLayout:
    """The layout where only the categories are known: numbers have no range and no grid.

    Raises:
        InputError: If a group does not fit.
    """
    found = _checked(groups, num_columns)
    numeric = _others(found, num_columns)
    none, one = np.zeros(len(numeric)), np.ones(len(numeric))
    return TableLayout(found, numeric, one, none - np.inf, none + np.inf, none, none)


def _find_groups(rows: Values) -> tuple[tuple[int, ...], ...]:
    is_binary = ((rows == 0) | (rows == 1)).all(0)
    found: list[list[int]] = []
    first = 0
    while first < rows.shape[1]:
        last = _end_of_group(rows, is_binary, first)
        if last is not None:
            found.append(list(range(first, last + 1)))
        first = first + 1 if last is None else last + 1
    if found:  # categories at the very end that no row has
        after = found[-1][-1] + 1
        while after < rows.shape[1] and not rows[:, after].any():
            found[-1].append(after)
            after += 1
    return tuple(tuple(group) for group in found)


def _end_of_group(rows: Values, is_binary: NDArray[np.bool_], first: int) -> int | None:
    """Last column of the category that begins here; None if none does."""
    total = np.zeros(len(rows))
    for column in range(first, rows.shape[1]):
        total = total + rows[:, column]
        if not is_binary[column] or (total > 1).any():  # two at once: it never gets back to 1
            return None
        if (total == 1).all():
            return column if column > first else None  # always 1: a constant, not a choice
    return None


def _grid(column: Values) -> tuple[float, float]:
    """First number and step of an even grid that all numbers lie on; step 0 if there is none."""
    distinct = np.unique(column)
    if len(distinct) < 2 or 2 < len(distinct) < _FEW:
        return float(distinct[0]), 0.0
    step = float(np.diff(distinct).min())
    places = (distinct - distinct[0]) / step
    if np.abs(places - np.round(places)).max() > _UNEVEN * max(1.0, float(places[-1]) / 100):
        return float(distinct[0]), 0.0
    best = float((distinct[-1] - distinct[0]) / round(float(places[-1])))
    return float(distinct[0]), best


def _checked(groups: Sequence[Sequence[int]], num_columns: int) -> tuple[tuple[int, ...], ...]:
    columns = [column for group in groups for column in group]
    wrong = [c for c in columns if not 0 <= c < num_columns]
    if wrong or len(set(columns)) < len(columns) or any(len(group) < 2 for group in groups):
        raise InputError(
            "categories",
            [list(group) for group in groups],
            f"each needs two columns or more of 0 to {num_columns - 1}, none of them twice",
            "List the columns of each category, like [[3, 4, 5], [6, 7]].",
        )
    return tuple(tuple(group) for group in groups)


def _others(groups: Sequence[Sequence[int]], num_columns: int) -> NDArray[np.int64]:
    taken = {column for group in groups for column in group}
    return np.array([c for c in range(num_columns) if c not in taken], dtype=np.int64)

"""Several searches of one table, pooled: where they agree is where they are right.

Each search finds the rows in an order of its own, so they are paired up with those of the best one
before they are averaged. The spread between searches, and how clear-cut a category is, say without
the truth how far a value can be trusted.

References:
    Vero, Balunovic, Dimitrov, Vechev, "TabLeak: Tabular Data Leakage in Federated Learning",
    ICML 2023, sections 4.2 and 4.3. https://arxiv.org/abs/2210.01785
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from attacks.reconstruction.tables import TableLayout

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """What searches agree on.

    Attributes:
        rows: Medians of numbers, mean probabilities of categories, shape (b, columns).
        confidence: In [0, 1], the same for all columns of a category, shape (b, columns).
            Categories: 1 - entropy / its largest value. Numbers: 1 / (1 + s / spread), with s the
            median distance to the median of the searches (times 1.4826, a standard deviation).
        num_pooled: Searches that were pooled.
    """

    rows: Values
    confidence: Values
    num_pooled: int


def pool(
    restarts: Values,
    objectives: Values,
    layout: TableLayout,
    *,
    labels: NDArray[np.int64] | None,
    within: float,
) -> Pool:
    """Pool searches whose objective is near the best one's.

    Args:
        restarts: Decoded rows, best first, shape (r, b, columns).
        objectives: The attacker's objective of each, ascending, shape (r,).
        layout: Of the table.
        labels: Class of each row, the same in all searches, shape (b,): only rows of one class are
            paired up. None if each search has labels of its own.
        within: How many times the best objective one may have to be pooled.
    """
    kept = np.isfinite(objectives) & (objectives <= within * objectives[0])
    chosen = restarts[kept]
    aligned = np.stack([_paired(rows, chosen[0], layout, labels) for rows in chosen])
    numeric = layout.numeric
    rows = aligned.mean(0)
    rows[:, numeric] = np.median(aligned[:, :, numeric], axis=0)
    confidence = np.ones_like(rows)
    away = np.median(np.abs(aligned[:, :, numeric] - rows[:, numeric]), axis=0)
    confidence[:, numeric] = 1 / (1 + 1.4826 * away / layout.spread)
    for group in layout.groups:
        columns = list(group)
        entropy = -np.sum(_x_log_x(rows[:, columns]), axis=1)
        confidence[:, columns] = np.clip(1 - entropy / np.log(len(group)), 0, 1)[:, None]
    return Pool(rows, confidence, len(chosen))


def _paired(
    rows: Values, best: Values, layout: TableLayout, labels: NDArray[np.int64] | None
) -> Values:
    """The rows in the order of the best search's."""
    cost = row_distance(best, rows, layout)
    if labels is not None:
        cost = cost + (labels[:, None] != labels[None]) * (cost.max() * len(cost) + 1)
    return rows[linear_sum_assignment(cost)[1]]


def row_distance(these: Values, those: Values, layout: TableLayout) -> Values:
    """Mean over columns of the table: total variation of categories, and distance of numbers in
    standard deviations, at most 1 so that no number outweighs a category. Shape (n, m)."""
    numbers = np.abs(these[:, None] - those[None])
    parts = [np.minimum(numbers[..., layout.numeric] / layout.spread, 1)]
    parts += [numbers[..., list(g)].sum(-1, keepdims=True) / 2 for g in layout.groups]
    found: Values = np.concatenate(parts, axis=-1).mean(-1)
    return found


def _x_log_x(values: Values) -> Values:
    inside = np.where(values > 0, values, 1.0)
    found: Values = inside * np.log(inside)
    return found

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

from attacks.reconstruction.tables import NUMBER_TOLERANCE, TableLayout
from fl_audit.errors import InputError

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """What searches agree on.

    Attributes:
        rows: Medians of numbers, mean probabilities of categories, shape (b, columns).
        confidence: In [0, 1], the same for all columns of a category, shape (b, columns).
            Categories: 1 - entropy / its largest value. Numbers: exp(-s / (0.319 spread)), with s
            the searches' root mean square distance to `rows`.
        num_pooled: Searches that `rows` come from.
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
    """Pool searches whose objective is near the best one's; all of them tell the confidence.

    Args:
        restarts: Decoded rows, best first, shape (r, b, columns).
        objectives: The attacker's objective of each, ascending, shape (r,).
        layout: Of the table.
        labels: Class of each row, the same in all searches, shape (b,): only rows of one class are
            paired up. None if each search has labels of its own.
        within: How many times the best objective a search may have to be pooled, at least 1.

    Raises:
        InputError: If fewer than two searches came to an end.
    """
    ended = np.isfinite(objectives)
    if ended.sum() < 2:
        raise InputError(
            "restarts",
            int(ended.sum()),
            "a pool compares two searches or more that came to an end",
            "Set restarts = 15; if searches break off, the model overflows on such inputs.",
        )
    aligned = np.stack([_paired(rows, restarts[0], layout, labels) for rows in restarts[ended]])
    near = aligned[objectives[ended] <= within * objectives[0]]
    numeric = layout.numeric
    rows = near.mean(0)
    rows[:, numeric] = np.median(near[:, :, numeric], axis=0)
    confidence = np.ones_like(rows)
    away = np.sqrt(np.mean(np.square(aligned[:, :, numeric] - rows[:, numeric]), axis=0))
    confidence[:, numeric] = np.exp(-away / (NUMBER_TOLERANCE * layout.spread))
    for group in layout.groups:
        columns = list(group)
        entropy = -np.sum(_x_log_x(aligned[:, :, columns].mean(0)), axis=1)
        confidence[:, columns] = np.clip(1 - entropy / np.log(len(group)), 0, 1)[:, None]
    return Pool(rows, confidence, len(near))


def _paired(
    rows: Values, best: Values, layout: TableLayout, labels: NDArray[np.int64] | None
) -> Values:
    """The rows in the order of the best search's."""
    cost = row_distance(best, rows, layout)
    if labels is not None:
        cost = cost + (labels[:, None] != labels[None]) * (cost.max() * len(cost) + 1)
    found: Values = rows[linear_sum_assignment(cost)[1]]
    return found


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

"""Rounding shares to whole numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def apportion(shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole numbers that sum to `total`, nearest to `shares * total` (largest remainder).

    Args:
        shares: Non-negative weights, shape (n,); they need not sum to 1. All zero means equal.
        total: What the result sums to.
    """
    weight = shares.sum()
    exact = shares / weight * total if weight > 0 else np.full(len(shares), total / len(shares))
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")  # largest remainder first
    counts[largest[: total - int(counts.sum())]] += 1
    return counts

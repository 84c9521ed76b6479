"""Differences of paired shares, with an interval that is never of width zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.results import Estimate
from fl_audit.stats import mean_ci, share_ci

_LEAST = 2


def paired_gain(
    first: NDArray[np.float64], second: NDArray[np.float64], *, confidence: float = 0.95
) -> Estimate:
    """Mean of first - second over pairs of shares in [0, 1]; a fraction in [-1, 1].

    Student's interval. Where the differences are all alike it says nothing, and the interval of
    shares stands in, which covers whatever the distribution.

    Args:
        first: Shape (n,), one entry a pair; pairs are independent.
        second: Likewise.

    Raises:
        InputError: If there are fewer than two pairs.
    """
    if len(first) < _LEAST:
        raise InputError(
            "pairs",
            len(first),
            "a difference of one pair has no interval",
            "Audit two or more, over clients or seeds.",
        )
    apart = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if float(np.ptp(apart)) > 0:
        return mean_ci(apart, confidence=confidence, bounds=(-1.0, 1.0))
    half = share_ci((apart + 1) / 2, confidence=confidence)
    return Estimate(
        value=float(np.clip(apart[0], 2 * half.low - 1, 2 * half.high - 1)),
        low=2 * half.low - 1,
        high=2 * half.high - 1,
        confidence=confidence,
        n=len(apart),
    )


def by_group(
    is_right: NDArray[np.bool_], chosen: NDArray[np.bool_], width: int
) -> NDArray[np.float64]:
    """Share of right guesses among a group's chosen records; groups without one are left out."""
    right = (is_right & chosen).reshape(-1, width).sum(axis=1)
    count = chosen.reshape(-1, width).sum(axis=1)
    result: NDArray[np.float64] = right[count > 0] / count[count > 0]
    return result

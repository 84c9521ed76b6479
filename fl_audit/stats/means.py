"""Means of independent measurements, with their interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, stdtrit

from fl_audit.errors import InputError
from fl_audit.results import Estimate
from fl_audit.stats.checks import check_confidence


def share_ci(values: NDArray[np.float64], *, confidence: float = 0.95) -> Estimate:
    """Mean of independent shares in [0, 1], with an interval that is never of width zero.

    Clopper-Pearson's limits with the sum of the shares in place of the number of successes: equal
    to it where all shares are 0 or 1, and conservative otherwise, because no variable in [0, 1]
    varies more than one that is 0 or 1 with the same mean.

    Args:
        values: At least one number in [0, 1], shape (n,).

    Raises:
        InputError: If there is none, or one lies outside [0, 1].
    """
    check_confidence(confidence)
    if values.ndim != 1 or len(values) == 0 or not ((values >= 0) & (values <= 1)).all():
        raise InputError(
            "values", values, "must be shares in [0, 1], at least one", "Divide by the total."
        )
    n, total, tail = len(values), float(values.sum()), (1 - confidence) / 2
    low = float(betaincinv(total, n - total + 1, tail)) if total > 0 else 0.0
    high = float(betaincinv(total + 1, n - total, 1 - tail)) if total < n else 1.0
    value = min(1.0, total / n)
    return Estimate(
        value=value, low=min(low, value), high=max(high, value), confidence=confidence, n=n
    )


def mean_ci(
    values: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Mean of independent values with Student's t interval.

    Args:
        values: At least two finite numbers, shape (n,).
        confidence: Coverage for normal values; approximate for others.
        bounds: What a mean can be at all; the interval is cut to it.

    Raises:
        InputError: If there are fewer than two values, or one is not finite.
    """
    check_confidence(confidence)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise InputError(
            "values",
            values,
            "a mean with an interval needs at least two finite numbers in one row",
            "Measure more often, or report the single value as such.",
        )
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * error
    return Estimate(
        value=mean,
        low=max(bounds[0], mean - half),
        high=min(bounds[1], mean + half),
        confidence=confidence,
        n=len(values),
    )


def median_ci(values: NDArray[np.float64], *, confidence: float = 0.95) -> Estimate:
    """Median of independent values, between two of their order statistics.

    Covers at least at the stated confidence, whatever the distribution.

    Args:
        values: Finite numbers, shape (n,); at least six at 95 %.

    Raises:
        InputError: If there are too few for an interval, or one is not finite.
    """
    check_confidence(confidence)
    tail = (1 - confidence) / 2
    is_row = values.ndim == 1 and len(values) > 0 and bool(np.isfinite(values).all())
    if not is_row or bdtr(0, len(values), 0.5) > tail:
        raise InputError(
            "values",
            values,
            f"too few, or not all finite: 2 * 0.5**n must be at most {1 - confidence:.3g}",
            "Measure more often, or report the single values as such.",
        )
    ordered, n = np.sort(values), len(values)
    # the k-th smallest lies above the median with probability P(fewer than k below) = bdtr(k - 1)
    below = max(k for k in range(n // 2) if bdtr(k, n, 0.5) <= tail)
    return Estimate(
        value=float(np.median(ordered)),
        low=float(ordered[below]),
        high=float(ordered[n - 1 - below]),
        confidence=confidence,
        n=n,
    )

"""Means of independent measurements, with their interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from fl_audit.errors import InputError
from fl_audit.results import Estimate
from fl_audit.stats.checks import check_confidence


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

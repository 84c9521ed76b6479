"""Confidence intervals for a proportion: Clopper-Pearson (never below its level) and Wilson."""

from __future__ import annotations

import math
import operator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special  # not scipy.stats, which takes three times as long to import

from fl_audit.errors import InputError, UnknownNameError
from fl_audit.results import Estimate
from fl_audit.stats.checks import check_confidence, check_scores

Method = Literal["clopper-pearson", "wilson"]


def proportion(
    successes: int, trials: int, *, confidence: float = 0.95, method: Method = "clopper-pearson"
) -> Estimate:
    """Estimate a probability from independent trials.

    Args:
        successes: Number of trials that succeeded, 0 to `trials`.
        trials: Number of independent trials, at least 1; becomes the estimate's `n`.
        confidence: Two-sided coverage of the interval, a fraction.
        method: "clopper-pearson" covers at least `confidence` always; "wilson" is narrower and
            covers it on average.

    Raises:
        InputError: If a count, the confidence or the method is not valid. A ValueError.
    """
    intervals = {"clopper-pearson": clopper_pearson_interval, "wilson": wilson_interval}
    if method not in intervals:
        raise UnknownNameError("method", method, intervals)
    low, high = intervals[method](successes, trials, confidence=confidence)
    value = successes / trials
    return Estimate(value=value, low=low, high=high, confidence=float(confidence), n=int(trials))


def clopper_pearson_interval(
    successes: int, trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Two-sided Clopper-Pearson limits of a probability: covers at least `confidence`, any n.

    Raises:
        InputError: If a count or the confidence is not valid. A ValueError.

    References:
        Clopper & Pearson, Biometrika 26 (1934). https://doi.org/10.1093/biomet/26.4.404
    """
    _check_counts(successes, trials)
    tail = (1 - check_confidence(confidence)) / 2
    return (
        clopper_pearson_low(successes, trials, tail=tail),
        clopper_pearson_high(successes, trials, tail=tail),
    )


def clopper_pearson_low(successes: int, trials: int, *, tail: float) -> float:
    """One-sided lower limit: above the true probability with probability at most `tail`.

    Counts are trusted: 0 <= successes <= trials, trials >= 1.
    """
    if successes == 0:
        return 0.0
    return float(special.betaincinv(successes, trials - successes + 1, tail))


def clopper_pearson_high(successes: int, trials: int, *, tail: float) -> float:
    """One-sided upper limit: below the true probability with probability at most `tail`.

    Counts are trusted: 0 <= successes <= trials, trials >= 1.
    """
    if successes == trials:
        return 1.0
    return float(special.betainccinv(successes + 1, trials - successes, tail))


def wilson_interval(
    successes: int, trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Two-sided Wilson score limits of a probability, without continuity correction.

    Raises:
        InputError: If a count or the confidence is not valid. A ValueError.

    References:
        Wilson, JASA 22 (1927). https://doi.org/10.1080/01621459.1927.10502953
    """
    _check_counts(successes, trials)
    z = -float(special.ndtri((1 - check_confidence(confidence)) / 2))
    rate, shrink = successes / trials, z * z / trials
    centre = (rate + shrink / 2) / (1 + shrink)
    half = z * math.sqrt(rate * (1 - rate) / trials + shrink / (4 * trials)) / (1 + shrink)
    # at the ends the limit is exactly 0 or 1, and the estimate always inside: rounding must not say
    # otherwise
    low = 0.0 if successes == 0 else min(centre - half, rate)
    high = 1.0 if successes == trials else max(centre + half, rate)
    return low, high


def _check_counts(successes: int, trials: int) -> None:
    for name, value in (("successes", successes), ("trials", trials)):
        try:
            operator.index(value)
        except TypeError:
            raise InputError(
                name, value, "must be an integer", "Pass a count, not a rate."
            ) from None
    if trials < 1:
        raise InputError(
            "trials", trials, "must be at least 1", "Without a trial nothing is known."
        )
    if not 0 <= successes <= trials:
        raise InputError(
            "successes",
            successes,
            f"must lie in 0..{trials}, the number of trials",
            "Check the order of the arguments: successes first.",
        )


def balanced_accuracy_ci(
    is_member: NDArray[np.bool_], decisions: NDArray[np.bool_], *, confidence: float = 0.95
) -> Estimate:
    """Mean of the true-positive and the true-negative rate of decisions fixed in advance.

    Both rates get Clopper-Pearson limits at 1 - alpha / 2, so that the interval covers at least at
    the stated confidence.

    Args:
        is_member: True for members, shape (n,).
        decisions: True where a record is called a member, shape (n,).

    Returns:
        A fraction; 0.5 = chance.

    Raises:
        InputError: If a side is empty.
    """
    flags, called = check_scores(is_member, np.asarray(decisions, dtype=np.float64))
    chosen = called > 0.5
    each = 1 - (1 - check_confidence(confidence)) / 2
    hits = proportion(int(chosen[flags].sum()), int(flags.sum()), confidence=each)
    rejections = proportion(int((~chosen[~flags]).sum()), int((~flags).sum()), confidence=each)
    return Estimate(
        value=(hits.value + rejections.value) / 2,
        low=(hits.low + rejections.low) / 2,
        high=(hits.high + rejections.high) / 2,
        confidence=confidence,
        n=len(flags),
    )

"""True-positive rate at a fixed false-positive rate, with an interval that counts the threshold.

A threshold read off a sample is itself an estimate: limits that ignore this cover far too little.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fl_audit.errors import InputError
from fl_audit.results import Estimate
from fl_audit.stats.checks import check_confidence, check_fraction, split_scores
from fl_audit.stats.proportions import clopper_pearson_high, clopper_pearson_low

# A product such as 0.29 * 100 falls just short of its integer; a relative 1e-12 mends this.
_SLACK = 1 + Fraction(1, 10**12)


class UnresolvableFprError(InputError):
    """There are too few non-members to speak about so low a false-positive rate."""


def tpr_at_fpr(
    is_member: NDArray[np.bool_],
    scores: NDArray[np.float64],
    fpr: float,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Estimate P(S1 > c*), where c* = inf{c : P(S0 > c) <= fpr}; S1 members, S0 non-members.

    The rule is "member if score > c". For the estimate, c is the (floor(fpr * n0) + 1)-th largest
    non-member score: ties with it count as non-members, so the sample's false-positive rate never
    exceeds `fpr`.

    The interval makes no assumption on the scores. With alpha = 1 - confidence, half goes to the
    threshold and half to the rate. The number of non-members above c* is at most, and the number at
    or above c* at least, a Binomial(n0, fpr) in stochastic order; hence between its quantiles
    k_lo and k_hi at alpha / 4 and 1 - alpha / 4, the (k_hi + 1)-th largest non-member score lies at
    or below c* and the k_lo-th largest at or above. The limits are Clopper-Pearson's for the
    members above these two scores, alpha / 4 a tail. If k_lo = 0, the lower limit is 0: see
    `resolving_non_members`.

    Args:
        is_member: True for members, shape (n,); booleans, or integers 0 and 1.
        scores: Finite scores, shape (n,); higher = more likely a member.
        fpr: False-positive rate, a fraction strictly between 0 and 1.
        confidence: Two-sided coverage, a fraction; held for every pair of distributions.

    Returns:
        The true-positive rate as a fraction; `n` is the number of members.

    Raises:
        UnresolvableFprError: If fpr * n0 < 1; says how many non-members would do.
        InputError: If the input is not valid. Both are ValueErrors.
    """
    members, non_members = split_scores(is_member, scores)
    fpr, tail = _check_fpr(fpr), (1 - check_confidence(confidence)) / 4
    n1, n0 = members.size, non_members.size
    allowed = _allowed_false_positives(fpr, n0)
    if allowed < 1:
        raise _unresolvable(fpr, n0)
    k_low, k_high = _binomial_limits(n0, fpr, tail)

    ranks = sorted({rank for rank in (k_low, allowed + 1, k_high + 1) if 1 <= rank <= n0})
    # partial sort: position n0 - r of the ascending order holds the r-th largest
    ordered = np.partition(non_members, [n0 - rank for rank in ranks])

    def members_above(rank: int) -> int:
        return int(np.count_nonzero(members > ordered[n0 - rank]))

    low = clopper_pearson_low(members_above(k_low), n1, tail=tail) if k_low >= 1 else 0.0
    most = members_above(k_high + 1) if k_high < n0 else n1
    return Estimate(
        value=members_above(allowed + 1) / n1,
        low=low,
        high=clopper_pearson_high(most, n1, tail=tail),
        confidence=float(confidence),
        n=n1,
    )


def min_non_members(fpr: float) -> int:
    """Return the smallest number of non-members at which `tpr_at_fpr` is not refused.

    Raises:
        InputError: If `fpr` does not lie strictly between 0 and 1. A ValueError.
    """
    return math.ceil(1 / (Fraction(_check_fpr(fpr)) * _SLACK))


def resolving_non_members(fpr: float, confidence: float = 0.95) -> int:
    """Return the smallest number of non-members at which the lower limit can exceed 0.

    With fewer, not even a perfect attack is told from one that finds nothing at this rate: the
    highest non-member score may lie below c* with probability (1 - fpr) ** n0 > alpha / 4.

    Raises:
        InputError: If an argument does not lie strictly between 0 and 1. A ValueError.
    """
    fpr, tail = _check_fpr(fpr), (1 - check_confidence(confidence)) / 4
    return max(min_non_members(fpr), math.ceil(math.log(tail) / math.log1p(-fpr)))


def _check_fpr(fpr: float) -> float:
    return check_fraction("fpr", fpr, remedy="Use a fraction such as 0.01, not a percentage.")


def _allowed_false_positives(fpr: float, n0: int) -> int:
    """floor(fpr * n0), forgiving the rounding of `fpr`; at most n0 - 1."""
    return min(math.floor(Fraction(fpr) * n0 * _SLACK), n0 - 1)


def _binomial_limits(n: int, p: float, tail: float) -> tuple[int, int]:
    """Largest k_low with P(K < k_low) <= tail, smallest k_high with P(K > k_high) <= tail.

    K is Binomial(n, p).
    """
    k_low = bisect_left(range(n), True, key=lambda k: bool(special.bdtr(k, n, p) > tail))
    k_high = bisect_left(range(n), True, key=lambda k: bool(special.bdtrc(k, n, p) <= tail))
    return k_low, k_high


def _unresolvable(fpr: float, n0: int) -> UnresolvableFprError:
    return UnresolvableFprError(
        "fpr",
        fpr,
        f"cannot be resolved with {n0} non-members, since fpr * {n0} is below 1",
        f"Use at least {min_non_members(fpr)} non-members, or a higher false-positive rate.",
    )

"""A confidence interval for the AUC that holds near 1, for small and unequal sides, under ties."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fl_audit.results import Estimate
from fl_audit.stats.checks import check_confidence, split_scores
from fl_audit.stats.curves import doubled_wins

_BISECTIONS = 60  # halvings of [0, 1]: below the spacing of floats near 1


def auc_ci(
    is_member: NDArray[np.bool_], scores: NDArray[np.float64], *, confidence: float = 0.95
) -> Estimate:
    """Estimate the AUC with an interval that is the widest of three.

    1. DeLong's variance on the logit scale. Assumes no shape of the two distributions, but is too
       narrow where few pairs decide: it often covers 80 to 90 % (nominal 95 %) at an AUC of 0.99 or
       with 20 against 200 examples, and as little as 65 %.
    2. Newcombe's pseudo-score interval (his method 5). Holds there, since its variance is taken at
       the limit and not at the estimate, but assumes how that variance depends on the AUC, and
       covers as little as 73 % with outliers. At 0.5 its variance is that of the Wilcoxon
       test, so an interval that excludes 0.5 implies a test that rejects, at any confidence.
    3. A perfect attack's limit. With m = min(n1, n0) disjoint member/non-member pairs, all won, the
       Clopper-Pearson lower limit is L = (alpha / 2) ** (1 / m); no data of this size may claim
       more. Where DeLong has no variance it is the bound: [value * L, 1 - (1 - value) * L], which
       is [L, 1] for a perfect attack; [L / 2, 1 - L / 2] if all scores tie, where L bounds
       P(tie) and the AUC lies within half of 1 - P(tie) of 0.5; and Markov's inequality on the
       empirical AUC when a side has one example.

    The union covered 94 % or more (nominal 95 %; mostly 96 to 99 %) in all settings measured: AUC
    0.5 to 0.999; 20 to 200 examples a side, equal or not; normal, exponential and tied scores,
    outliers. The price is width: near 1 with unequal sides about twice what would do, and several
    times if nearly all scores tie.

    At 99.9 % the limit towards 0.5 held as stated, but the limit towards the end is optimistic when
    the AUC is close to that end (0.999 with 20 a side: missed in up to 2 % of runs).

    Args:
        is_member: True for members, shape (n,); booleans, or integers 0 and 1.
        scores: Finite scores, shape (n,); higher = more likely a member.
        confidence: Two-sided coverage, a fraction.

    Returns:
        The AUC as a fraction (0.5 = chance, 1 = perfect); `n` is the total number of scores.

    Raises:
        InputError: If the input is not valid (see `check_scores`). A ValueError.

    References:
        DeLong et al., Biometrics 44 (1988). https://doi.org/10.2307/2531595
        Sun & Xu, IEEE SPL 21 (2014), its O(n log n) form. https://doi.org/10.1109/LSP.2014.2337313
        Newcombe, Statist. Med. 25 (2006), method 5. https://doi.org/10.1002/sim.2324
    """
    members, non_members = split_scores(is_member, scores)
    tail = (1 - check_confidence(confidence)) / 2
    z = -float(special.ndtri(tail))
    sides = members.size, non_members.size
    value, variance = delong(members, non_members)
    perfect = tail ** (1 / min(sides))
    if variance > 0:
        outer = _logit_interval(value, variance, z)
        low, high = min(outer[0], perfect), max(outer[1], 1 - perfect)
    else:
        low, high = value * perfect, 1 - (1 - value) * perfect
    low = min(low, pseudo_score_low(value, sides, z=z))
    high = max(high, 1 - pseudo_score_low(1 - value, sides, z=z))
    return Estimate(value=value, low=low, high=high, confidence=float(confidence), n=sum(sides))


def delong(members: NDArray[np.float64], non_members: NDArray[np.float64]) -> tuple[float, float]:
    """Return the AUC and DeLong's estimate of its variance.

    The variance is exactly 0 where it says nothing: perfect or perfectly wrong separation, all
    scores tied, or a side with one example.

    Args:
        members: Scores of members, shape (n1,).
        non_members: Scores of non-members, shape (n0,).
    """
    n1, n0 = members.size, non_members.size
    members, non_members = np.sort(members), np.sort(non_members)
    wins = doubled_wins(members, non_members)
    losses = doubled_wins(non_members, members)
    value = float(wins.sum() / (2 * n1 * n0))
    # compared as integers: a floating-point variance of equal numbers may differ from 0
    is_constant = bool((wins == wins[0]).all() and (losses == losses[0]).all())
    if min(n1, n0) == 1 or is_constant:
        return value, 0.0
    variance = np.var(wins / (2 * n0), ddof=1) / n1 + np.var(losses / (2 * n1), ddof=1) / n0
    return value, float(variance)


def pseudo_score_low(value: float, sides: tuple[int, int], *, z: float) -> float:
    """Lower limit of Newcombe's method 5; the upper limit is 1 - pseudo_score_low(1 - value, ...).

    The limit solves value - t = z * sd(t). The standard deviation is concave in t, being the
    geometric mean of two concave functions, so there is one root below `value`.

    Args:
        value: Empirical AUC, a fraction.
        sides: Numbers of members and non-members, in either order.
        z: Normal quantile of the confidence.
    """
    n1, n0 = sides
    extra = (n1 + n0) / 2 - 1
    low, high = 0.0, value
    for _ in range(_BISECTIONS):
        t = (low + high) / 2
        shape = 1 + extra * ((1 - t) / (2 - t) + t / (1 + t))
        if value - t > z * math.sqrt(t * (1 - t) * shape / (n1 * n0)):
            low = t
        else:
            high = t
    return low


def _logit_interval(value: float, variance: float, z: float) -> tuple[float, float]:
    """Normal limits on the logit scale (delta method), mapped back to (0, 1)."""
    centre = math.log(value / (1 - value))
    half = z * math.sqrt(variance) / (value * (1 - value))
    return float(special.expit(centre - half)), float(special.expit(centre + half))

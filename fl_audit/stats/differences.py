"""Differences of two estimates, with intervals."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fl_audit.results import Estimate
from fl_audit.stats.checks import check_confidence, split_scores
from fl_audit.stats.curves import doubled_wins


def auc_gain_ci(
    is_member: NDArray[np.bool_],
    scores: NDArray[np.float64],
    baseline: NDArray[np.float64],
    *,
    confidence: float = 0.95,
) -> Estimate:
    """AUC of `scores` minus AUC of `baseline` on the same records.

    DeLong's paired variance. Where it is 0 - both rank alike, or both are perfect - it says
    nothing, and the limits are those that a difference of two perfect attacks of this size has.

    Args:
        is_member: True for members, shape (n,).
        scores: Shape (n,); higher = more likely a member.
        baseline: Likewise, of the same records.

    Raises:
        InputError: If the input is not valid.

    References:
        DeLong et al., Biometrics 44 (1988). https://doi.org/10.2307/2531595
    """
    tail = (1 - check_confidence(confidence)) / 2
    members, others = zip(*(split_scores(is_member, s) for s in (scores, baseline)), strict=True)
    n1, n0 = members[0].size, others[0].size
    wins = [doubled_wins(m, np.sort(o)) / (2 * n0) for m, o in zip(members, others, strict=True)]
    losses = [doubled_wins(o, np.sort(m)) / (2 * n1) for m, o in zip(members, others, strict=True)]
    value = float(wins[0].mean() - wins[1].mean())
    variance = 0.0
    if min(n1, n0) > 1:
        variance = float(
            np.var(wins[0] - wins[1], ddof=1) / n1 + np.var(losses[0] - losses[1], ddof=1) / n0
        )
    half = 1 - tail ** (1 / min(n1, n0))
    if variance > 0:
        half = -float(special.ndtri(tail)) * math.sqrt(variance)
    return Estimate(
        value=value,
        low=max(-1.0, value - half),
        high=min(1.0, value + half),
        confidence=float(confidence),
        n=n1 + n0,
    )


def difference(first: Estimate, second: Estimate) -> Estimate:
    """First minus second, from independent estimates whose limits are at 1 - alpha / 2 each.

    Conservative: both limits of both are allowed to be reached at once.
    """
    alpha = 2 * (1 - min(first.confidence, second.confidence))
    return Estimate(
        value=first.value - second.value,
        low=first.low - second.high,
        high=first.high - second.low,
        confidence=1 - alpha,
        n=first.n + second.n,
    )

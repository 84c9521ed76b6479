"""The ROC curve and the area under it, exact under ties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_audit.stats.checks import check_scores, split_scores


@dataclass(frozen=True, slots=True, eq=False)  # eq=False: arrays have no single truth value
class RocCurve:
    """One point per distinct score, for the rule "member if score >= threshold".

    The points start at (0, 0) with threshold +inf and end at (1, 1) with the lowest score.
    """

    fpr: NDArray[np.float64]  # (p,), false-positive rate, non-decreasing fraction
    tpr: NDArray[np.float64]  # (p,), true-positive rate, non-decreasing fraction
    thresholds: NDArray[np.float64]  # (p,), in units of the score, strictly decreasing


def roc(is_member: NDArray[np.bool_], scores: NDArray[np.float64]) -> RocCurve:
    """Trace the empirical ROC curve; tied scores give one point, never a step between them.

    Args:
        is_member: True for members, shape (n,); booleans, or integers 0 and 1.
        scores: Finite scores, shape (n,); higher = more likely a member.

    Raises:
        InputError: If the input is not valid (see `check_scores`). A ValueError.
    """
    flags, score = check_scores(is_member, scores)
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(flags[order])
    last = np.append(np.flatnonzero(score[1:] != score[:-1]), score.size - 1)  # of each tie group
    true_positives = np.append(0, hits[last])
    positives = np.append(0, last + 1)
    return RocCurve(
        fpr=(positives - true_positives) / (score.size - hits[-1]),
        tpr=true_positives / hits[-1],
        thresholds=np.append(np.inf, score[last]),
    )


def auc(is_member: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Area under the ROC curve: P(member scores higher) + P(tie) / 2, a fraction.

    This is the Mann-Whitney statistic with mid-ranks over n1 * n0; 0.5 = chance, 1 = perfect.

    Args:
        is_member: True for members, shape (n,); booleans, or integers 0 and 1.
        scores: Finite scores, shape (n,); higher = more likely a member.

    Raises:
        InputError: If the input is not valid (see `check_scores`). A ValueError.
    """
    members, non_members = split_scores(is_member, scores)
    wins = doubled_wins(members, np.sort(non_members))
    return float(wins.sum() / (2 * members.size * non_members.size))


def doubled_wins(scores: NDArray[np.float64], opponents: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each score, 2 * (opponents below it) + (opponents equal to it), shape of `scores`.

    Twice the placement of DeLong et al.; doubled so that ties stay integers and sums are exact.

    Args:
        scores: Shape (a,).
        opponents: Shape (b,), sorted ascending.
    """
    wins = np.searchsorted(opponents, scores, side="left")
    return wins + np.searchsorted(opponents, scores, side="right")

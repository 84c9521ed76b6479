"""Input checks shared by the statistics: once at the boundary, trusted inside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError


def check_scores(
    is_member: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Check membership labels and scores; return them as bool and float64 arrays.

    Args:
        is_member: True where the example was in the training set, shape (n,); booleans, or
            integers that are all 0 or 1.
        scores: One real number per example, shape (n,); higher = more likely a member.

    Raises:
        InputError: If a shape, a dtype or a value is wrong, or one side is empty. A ValueError.
    """
    member, score = np.asarray(is_member), np.asarray(scores)
    for name, array in (("is_member", member), ("scores", score)):
        if array.ndim != 1:
            raise InputError(
                f"{name}.shape", array.shape, "must have one dimension", "Flatten it first."
            )
    if member.size != score.size:
        raise InputError(
            "len(scores)",
            score.size,
            f"must equal len(is_member) = {member.size}",
            "Pass one score per example, in the same order.",
        )
    if score.dtype.kind not in "biuf":
        raise InputError(
            "scores.dtype", str(score.dtype), "must be real numbers", "Convert to float64."
        )
    score = score.astype(np.float64)
    flags = _as_flags(member)
    _check_finite(score)
    for name, count in (("members", flags.sum()), ("non-members", (~flags).sum())):
        if count == 0:
            raise InputError(
                f"number of {name}",
                0,
                "a comparison needs at least one of each side",
                "Pass the scores of members and non-members together.",
            )
    return flags, score


def split_scores(
    is_member: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check as `check_scores`; return the members' and the non-members' scores, (n1,) and (n0,)."""
    flags, score = check_scores(is_member, scores)
    return score[flags], score[~flags]


def check_confidence(confidence: float) -> float:
    """Return `confidence` as a float strictly between 0 and 1, or raise InputError."""
    return check_fraction("confidence", confidence, remedy="Use a fraction such as 0.95.")


def check_fraction(name: str, value: float, *, remedy: str) -> float:
    """Return `value` as a float strictly between 0 and 1, or raise InputError naming it."""
    if not 0 < value < 1:  # also refuses NaN
        raise InputError(name, value, "must lie strictly between 0 and 1", remedy)
    return float(value)


def _as_flags(member: NDArray[np.generic]) -> NDArray[np.bool_]:
    if member.dtype.kind not in "biu":
        raise InputError(
            "is_member.dtype",
            str(member.dtype),
            "must be boolean, or integers 0 and 1",
            "Pass is_member first and scores second; convert labels with `labels == 1`.",
        )
    wrong = np.flatnonzero((member != 0) & (member != 1))
    if wrong.size:
        raise InputError(
            f"is_member[{wrong[0]}]",
            member[wrong[0]].item(),
            "must be 0 or 1",
            "Convert labels with `labels == 1`.",
        )
    return member.astype(np.bool_)


def _check_finite(score: NDArray[np.float64]) -> None:
    wrong = np.flatnonzero(~np.isfinite(score))
    if not wrong.size:
        return
    first = float(score[wrong[0]])
    remedy = (
        "Drop the example, or repair the attack that could not score it."
        if np.isnan(first)
        # not harmless although ranks could cope: several saturated scores would become one tie
        else "Compute the score in log space (log-softmax, log-odds), or clip it to a finite range."
    )
    rule = f"scores must be finite; {wrong.size} of {score.size} are not"
    raise InputError(f"scores[{wrong[0]}]", first, rule, remedy)

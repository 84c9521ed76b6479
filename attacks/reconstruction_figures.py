"""From one number an update to figures: means with intervals, and what is gained on the guess.

Found and guess are of the same updates, so the gain is the mean of their differences: what makes an
update easy for both cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from attacks.reconstruction import metrics
from fl_audit.attack_spec import Reconstructions
from fl_audit.results import LOWER_IS_BETTER, Estimate
from fl_audit.stats import mean_ci, median_ci, share_ci

Figures = Sequence[Mapping[str, float]]
_ORDER = (
    "psnr_db",
    "recovered",
    "recovered_20",
    "exact",
    "exact_8bit",
    "ssim",
    "rouge_1",
    "rouge_2",
    "exact_tokens",
    "exact_rows",
    "exact_cells",
    "token_precision",
    "token_recall",
    "label_accuracy",
    "label_overlap",
    "re_identified@1",
    "median_rank",
    "feature_distance",
)
_BOUNDS = {
    "psnr_db": (-np.inf, metrics.PSNR_CAP),
    "ssim": (-1.0, 1.0),
    "feature_distance": (0.0, np.inf),
}
_LEADING = {  # measures that may decide, by what was claimed: the first that has a figure does
    "numbers": ("psnr_db", "re_identified@1", "exact"),
    "tokens": ("rouge_1", "token_recall"),
    "table": ("exact_cells",),
    "labels": ("label_overlap",),
}
_ENOUGH_TRIALS = 2  # a mean of one has no interval
_ENOUGH_FOR_MEDIAN = 6  # fewer have no 95 % interval
_CONFIDENCE = 0.95
_ROUNDING = 1e-9  # differences that are closer than this are equal


def estimates(figures: Figures) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Each measure over the updates that have it, with its interval; or why there is none."""
    found: dict[str, Estimate] = {}
    refused: dict[str, str] = {}
    for name in _ORDER:
        values = np.array([own[name] for own in figures if name in own])
        if not len(values):
            continue
        if not np.isfinite(values).all():
            refused[name] = "it is not finite for some update"
            continue
        enough = _ENOUGH_FOR_MEDIAN if name == "median_rank" else _ENOUGH_TRIALS
        if name == "median_rank" and len(values) >= enough:
            found[name] = median_ci(values)
        elif _is_share(name):
            found[name] = share_ci(np.clip(values, 0, 1))  # a sum of shares may round above 1
        elif len(values) >= enough:
            found[name] = mean_ci(values, bounds=_BOUNDS[name])
        else:
            listed = ", ".join(f"{value:.4g}" for value in values)
            refused[name] = f"an interval needs {enough} updates or more; found: {listed}"
    return found, refused


def gains(found: Figures, guessed: Figures) -> dict[str, Estimate]:
    """What each measure gains on the guess, over updates where both have it. Positive = better.

    Args:
        found: Measure: value, by update.
        guessed: The same for the guess, in the same order; or nothing.
    """
    result: dict[str, Estimate] = {}
    if not guessed:
        return result
    for name in _ORDER:
        both = [
            own[name] - theirs[name]
            for own, theirs in zip(found, guessed, strict=True)
            if name in own and name in theirs
        ]
        differences = np.array(both, dtype=np.float64)
        if not len(both) or not np.isfinite(differences).all():
            continue
        gain = _gain(name, -differences if name in LOWER_IS_BETTER else differences)
        if gain is not None:
            result[name] = gain
    return result


def leading(output: Reconstructions, gained: Mapping[str, Estimate]) -> str | None:
    """The one measure that decides, by what was claimed; None if there is no gain to decide by."""
    contents: str = output.contents
    if all(c.inputs is None and c.tokens is None for c in output.targets):
        contents = "labels"
    order = _LEADING[contents]
    if output.unclaimed and "recovered" in output.expected:
        order = ("recovered", *order)
    return next((name for name in order if name in gained), None)


def _gain(name: str, differences: NDArray[np.float64]) -> Estimate | None:
    """The interval of a mean (of ranks: median) difference; None if there are too few."""
    num, is_share = len(differences), _is_share(name)
    if name == "median_rank":
        return median_ci(differences) if num >= _ENOUGH_FOR_MEDIAN else None
    if float(np.ptp(differences)) > _ROUNDING:
        bounds = (-1.0, 1.0) if is_share else (-np.inf, np.inf)
        return mean_ci(differences, confidence=_CONFIDENCE, bounds=bounds)
    if is_share:
        return equal_gain(float(differences[0]), num)
    return median_ci(differences) if num >= _ENOUGH_FOR_MEDIAN else None


def equal_gain(value: float, num: int) -> Estimate:
    """The interval of a mean in [-1, 1] of which all observations are the same.

    Their spread says nothing then. At least q = (tail)^(1/num) of all updates have this value, at
    the stated confidence, and the others lie anywhere in [-1, 1].
    """
    value = float(np.clip(value, -1, 1))
    share = ((1 - _CONFIDENCE) / 2) ** (1 / num)
    low, high = (share * value + (1 - share) * end for end in (-1.0, 1.0))
    return Estimate(value=value, low=low, high=high, confidence=_CONFIDENCE, n=num)


def _is_share(name: str) -> bool:
    return name not in _BOUNDS and name != "median_rank"

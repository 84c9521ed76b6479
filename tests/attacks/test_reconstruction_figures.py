"""Means over updates and gains on the guess, by hand; updates tried in vain; false alarms."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.reconstruction_figures import equal_gain, estimates, gains, leading
from fl_audit.attack_spec import Reconstruction, Reconstructions

CLAIM = Reconstruction(1, 0, np.zeros((1, 2)))


def named(name: str, values: list[float]) -> list[dict[str, float]]:
    return [{name: value} for value in values]


def test_a_gain_is_of_differences_on_the_same_updates() -> None:
    """Found 0.9, 0.5, 0.7 and guess 0.6, 0.3, 0.3: the gains are 0.3, 0.2, 0.4."""
    found, guessed = named("recovered", [0.9, 0.5, 0.7]), named("recovered", [0.6, 0.3, 0.3])
    gain = gains(found, guessed)["recovered"]
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # Student's t, 2 degrees of freedom
    assert gain.value == pytest.approx(0.3)
    assert (gain.low, gain.high) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))
    assert gain.n == 3
    apart, control = estimates(found)[0]["recovered"], estimates(guessed)[0]["recovered"]
    assert apart.low < control.high  # unpaired, the two cannot be told apart
    assert gain.low > 0


def test_smaller_is_better_for_distances_and_ranks() -> None:
    found, guessed = named("feature_distance", [0.1, 0.2]), named("feature_distance", [0.9, 0.8])
    assert gains(found, guessed)["feature_distance"].value == pytest.approx(0.7)
    ranks, theirs = named("median_rank", [1, 1, 2, 1, 1, 1]), named("median_rank", [9] * 6)
    gain = gains(ranks, theirs)["median_rank"]
    assert (gain.low, gain.value, gain.high) == (7, 8, 8)
    assert gains(ranks[:5], theirs[:5]) == {}


def test_equal_differences_still_have_a_width() -> None:
    """Six times 1: q = 0.025^(1/6) = 0.5407 of all updates at least, so 2 q - 1 at least."""
    gain = gains(named("exact", [1] * 6), named("exact", [0] * 6))["exact"]
    assert (gain.value, gain.high) == (1, 1)
    assert gain.low == pytest.approx(2 * 0.025 ** (1 / 6) - 1)
    assert gain.low > 0 > equal_gain(1.0, 5).low
    nothing = equal_gain(0.0, 10)
    assert nothing.low == -nothing.high == pytest.approx(0.025**0.1 - 1)


def test_equal_differences_without_bounds_need_six() -> None:
    """Nothing is known of how much they vary: the median of six or more has an interval."""
    found, guessed = named("psnr_db", [40.0] * 6), named("psnr_db", [10.0] * 6)
    gain = gains(found, guessed)["psnr_db"]
    assert (gain.low, gain.high) == (30, 30)
    assert gains(found[:5], guessed[:5]) == {}


def test_updates_without_both_figures_are_in_no_gain() -> None:
    found = [{"exact": 1.0, "psnr_db": 30.0}, {"exact": 0.0}, {"exact": 1.0, "psnr_db": 34.0}]
    guessed = [{"exact": 0.0, "psnr_db": 10.0}, {"exact": 0.0}, {"exact": 0.0, "psnr_db": 10.0}]
    gain = gains(found, guessed)
    assert gain["exact"].n == 3
    assert (gain["psnr_db"].n, gain["psnr_db"].value) == (2, 22)
    assert gains(found, []) == {}


def test_one_measure_decides_by_what_was_claimed() -> None:
    gain = gains(
        [dict.fromkeys(("psnr_db", "exact", "recovered", "rouge_1", "label_overlap"), 1.0 + i)
         for i in range(2)],
        [dict.fromkeys(("psnr_db", "exact", "recovered", "rouge_1", "label_overlap"), 0.5)] * 2,
    )  # fmt: skip
    assert leading(Reconstructions((CLAIM,)), gain) == "psnr_db"
    del gain["psnr_db"]
    assert leading(Reconstructions((CLAIM,)), gain) == "exact"
    labels = Reconstruction(1, 0, label_counts=np.array([1]))
    assert leading(Reconstructions((labels,)), gain) == "label_overlap"
    assert leading(Reconstructions((CLAIM,), contents="tokens"), gain) == "rouge_1"
    tried = ((1, 0, (0,)), (2, 0, (0,)))
    partly = Reconstructions((CLAIM,), expected={"recovered": 0.5}, tried=tried)
    assert leading(partly, gain) == "recovered"
    assert leading(Reconstructions((CLAIM,), contents="table"), gain) is None


@pytest.mark.parametrize("num", [6, 12, 40])
def test_no_gain_is_seldom_called_one(num: int) -> None:
    """Found and guess of one distribution: at most 2.5 % false alarms are meant.

    Of 2000 trials at a rate of 0.04, more than 125 have probability below 1e-6 (fixed seed).
    """
    rng = np.random.default_rng(20_261_126)
    alarms = 0
    for _ in range(2000):
        found, guessed = rng.binomial(4, 0.3, size=(2, num)) / 4
        gain = gains(named("exact", found.tolist()), named("exact", guessed.tolist()))
        alarms += gain["exact"].low > 0
    assert alarms <= 125

"""Means: Student's interval, cut to what can be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fl_audit.errors import InputError
from fl_audit.stats import mean_ci, median_ci, proportion, share_ci

SEED = 20_261_123


def test_equals_scipys_t_interval() -> None:
    values = np.random.default_rng(SEED).normal(3, 2, 12)
    estimate = mean_ci(values, confidence=0.9)
    low, high = stats.t.interval(0.9, 11, values.mean(), stats.sem(values))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (values.mean(), low, high)
    )
    assert estimate.n == 12


def test_bounds_cut_the_interval() -> None:
    estimate = mean_ci(np.array([140.0, 150.0]), bounds=(-np.inf, 150.0))
    assert estimate.high == 150
    assert estimate.low < 140


@pytest.mark.parametrize("values", [[1.0], [], [1.0, np.nan], [[1.0, 2.0]]])
def test_bad_values_are_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match="at least two finite numbers"):
        mean_ci(np.array(values))


def test_shares_of_zero_and_one_are_clopper_pearson() -> None:
    values = np.array([1.0] * 7 + [0.0] * 3)
    estimate, exact = share_ci(values), proportion(7, 10)
    assert (estimate.low, estimate.high) == pytest.approx((exact.low, exact.high))


def test_shares_that_are_all_one_still_have_an_interval() -> None:
    assert share_ci(np.ones(6)).low == pytest.approx(0.025 ** (1 / 6))


def test_share_intervals_cover() -> None:
    """Beta-distributed shares, 4,000 runs of 10: coverage at least 93 %, false-failure rate < 1e-6
    (a correct 95 % interval fails with probability 1e-8)."""
    rng = np.random.default_rng(SEED)
    for a, b in ((8, 2), (1, 1), (0.5, 0.1)):
        draws = rng.beta(a, b, (4000, 10))
        covered = [e.low <= a / (a + b) <= e.high for e in map(share_ci, draws)]
        assert np.mean(covered) >= 0.93


@pytest.mark.parametrize("values", [[], [1.1], [-0.1], [np.nan]])
def test_what_is_no_share_is_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match="shares"):
        share_ci(np.array(values))


@pytest.mark.parametrize(("n", "low", "high"), [(6, 1, 6), (9, 2, 8), (20, 6, 15), (100, 40, 61)])
def test_the_median_lies_between_the_order_statistics_of_the_tables(
    n: int, low: int, high: int
) -> None:
    """The k-th smallest and largest, with the largest k of which P(Bin(n, 1/2) < k) <= 0.025."""
    estimate = median_ci(np.random.default_rng(n).permutation(np.arange(1.0, n + 1)))
    assert (estimate.low, estimate.value, estimate.high) == (low, (n + 1) / 2, high)
    assert estimate.n == n


def test_the_median_s_interval_covers_whatever_the_distribution() -> None:
    """Exact coverage is 0.9648; 0.93 of 2,000 is 8 standard errors off (false failure < 1e-6)."""
    rng = np.random.default_rng(20_261_125)
    for draw, truth in ((rng.exponential, np.log(2)), (rng.standard_cauchy, 0.0)):
        found = [median_ci(draw(size=15)) for _ in range(2000)]
        assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.93


@pytest.mark.parametrize("values", [np.arange(5.0), np.array([]), np.full(9, np.nan), np.eye(7)])
def test_a_median_without_an_interval_is_refused(values: np.ndarray) -> None:
    with pytest.raises(InputError, match="too few"):
        median_ci(values)

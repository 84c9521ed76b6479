"""Proportions against scipy's binomtest, closed forms, and bad input."""

from __future__ import annotations

import pytest
from scipy import stats

from fl_audit.errors import UnknownNameError
from fl_audit.stats import clopper_pearson_interval, proportion, wilson_interval
from fl_audit.stats.proportions import Method

COUNTS = [(0, 1), (1, 1), (0, 20), (1, 20), (10, 20), (19, 20), (20, 20), (3, 5000), (4999, 5000)]


@pytest.mark.parametrize("confidence", [0.5, 0.95, 1 - 1e-7])
@pytest.mark.parametrize(("successes", "trials"), COUNTS)
def test_both_intervals_equal_scipys(successes: int, trials: int, confidence: float) -> None:
    test = stats.binomtest(successes, trials)
    exact = test.proportion_ci(confidence, method="exact")
    wilson = test.proportion_ci(confidence, method="wilson")
    assert clopper_pearson_interval(successes, trials, confidence=confidence) == pytest.approx(
        (exact.low, exact.high), rel=1e-8, abs=1e-12
    )
    assert wilson_interval(successes, trials, confidence=confidence) == pytest.approx(
        (wilson.low, wilson.high), rel=1e-8, abs=1e-12
    )


def test_closed_forms_at_the_ends() -> None:
    assert clopper_pearson_interval(10, 10) == pytest.approx((0.025**0.1, 1))
    assert clopper_pearson_interval(0, 10) == pytest.approx((0, 1 - 0.025**0.1))
    z2 = stats.norm.ppf(0.975) ** 2
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z2), 1))
    for interval in (clopper_pearson_interval, wilson_interval):  # and the ends are exact
        assert (interval(0, 10)[0], interval(10, 10)[1]) == (0, 1)


def test_failures_mirror_successes() -> None:
    for interval in (clopper_pearson_interval, wilson_interval):
        low, high = interval(3, 17)
        assert interval(14, 17) == pytest.approx((1 - high, 1 - low))


def test_clopper_pearson_never_covers_below_its_level() -> None:
    """The definition, summed over all outcomes: no sampling involved."""
    trials = 15
    limits = [clopper_pearson_interval(k, trials) for k in range(trials + 1)]
    for p in (0.01, 0.1, 0.25, 0.5, 0.9, 0.999):
        pmf = stats.binom.pmf(range(trials + 1), trials, p)
        covered = sum(w for w, (low, high) in zip(pmf, limits, strict=True) if low <= p <= high)
        assert covered >= 0.95


@pytest.mark.parametrize("method", ["clopper-pearson", "wilson"])
def test_proportion_carries_interval_and_n(method: Method) -> None:
    estimate = proportion(3, 12, confidence=0.9, method=method)
    assert (estimate.value, estimate.n, estimate.confidence) == (0.25, 12, 0.9)
    assert 0 < estimate.low < 0.25 < estimate.high < 1


@pytest.mark.parametrize(
    ("successes", "trials", "message"),
    [
        (3, 2, r"successes = 3: must lie in 0\.\.2"),
        (-1, 2, "successes = -1"),
        (0, 0, "trials = 0: must be at least 1"),
        (0.5, 2, "successes = 0.5: must be an integer"),
    ],
)
def test_bad_counts_are_named(successes: int, trials: int, message: str) -> None:
    for interval in (clopper_pearson_interval, wilson_interval, proportion):
        with pytest.raises(ValueError, match=message):
            interval(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, -0.1, float("nan")])
def test_bad_confidence_is_named(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"confidence = .* strictly between 0 and 1"):
        wilson_interval(1, 2, confidence=confidence)


def test_unknown_method_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'wilson'"):
        proportion(1, 2, method="wilsn")  # type: ignore[arg-type]

"""TPR at a fixed FPR: the point on known samples, the limits' coverage, and the refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from fl_audit.stats import (
    UnresolvableFprError,
    clopper_pearson_interval,
    min_non_members,
    resolving_non_members,
    roc,
    tpr_at_fpr,
)

N1, RUNS, SEED = 300, 4_000, 20_250_301
# The interval's guarantee is 95 %, so P(fail | code is right) is at most P(Bin(RUNS, 0.95) < 93 %)
# = 1.1e-8 a cell, 1.3e-7 for the twelve cells: below 1e-6. (2,000 runs would not do: 3e-5 a cell.)
LEAST_COVERED = 0.93
CELLS = [(200, 0.01), (1000, 0.01), (1000, 0.001), (5000, 0.01), (5000, 0.001)]


def sample_of(
    members: NDArray[np.float64], non_members: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return np.arange(members.size + non_members.size) < members.size, np.append(
        members, non_members
    )


def coverage(n0: int, fpr: float, shift: float, *, step: float | None = None) -> float:
    """Share of RUNS whose interval holds the true rate; scores are rounded to `step` if given."""
    rng = np.random.default_rng(SEED)
    threshold = -special.ndtri(fpr)
    if step is not None:  # P(rounded > c) for c = j * step is P(raw > (j + 1/2) * step)
        threshold = (np.ceil(threshold / step - 0.5) + 0.5) * step
    truth = special.ndtr(shift - threshold)
    covered = 0
    for _ in range(RUNS):
        scores = rng.normal(size=N1 + n0)
        scores[:N1] += shift
        if step is not None:
            scores = np.round(scores / step) * step
        estimate = tpr_at_fpr(*sample_of(scores[:N1], scores[N1:]), fpr)
        covered += estimate.low <= truth <= estimate.high
    return covered / RUNS


def test_the_stated_false_failure_rate() -> None:
    assert 12 * stats.binom.cdf(LEAST_COVERED * RUNS - 1, RUNS, 0.95) < 1e-6


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize(("n0", "fpr"), CELLS)
def test_interval_covers(n0: int, fpr: float, shift: float) -> None:
    assert coverage(n0, fpr, shift) >= LEAST_COVERED


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_interval_covers_when_scores_tie(shift: float) -> None:
    assert coverage(1000, 0.01, shift, step=0.5) >= LEAST_COVERED


def test_an_interval_that_ignores_the_threshold_would_be_caught() -> None:
    rng = np.random.default_rng(SEED)
    truth, covered = special.ndtr(1 + special.ndtri(0.01)), 0
    for _ in range(RUNS):
        members, non_members = rng.normal(1, 1, N1), rng.normal(size=200)
        hits = int(np.sum(members > np.sort(non_members)[-3]))
        low, high = clopper_pearson_interval(hits, N1)
        covered += low <= truth <= high
    assert covered / RUNS < 0.7  # about 0.5; with p = 0.6, P(fail) is below 1e-6


def test_point_and_limits_on_a_sample_worked_by_hand() -> None:
    """n0 = 1000, FPR 0.01: point at the 11th largest, limits at the 4th and the 19th."""
    quantiles = stats.binom.ppf([0.0125, 0.9875], 1000, 0.01)
    assert quantiles.tolist() == [4, 18]
    non_members = np.arange(1000.0)  # the r-th largest is 1000 - r
    members = np.array([980.5, 981.0, 981.5, 989.0, 989.5, 995.0, 996.0, 996.5, 2000.0, 3000.0])
    estimate = tpr_at_fpr(*sample_of(members, non_members), 0.01)
    above = {rank: int(np.sum(members > 1000 - rank)) for rank in (4, 11, 19)}
    assert above == {4: 3, 11: 6, 19: 8}
    assert estimate.value == 0.6
    assert estimate.low == pytest.approx(stats.beta.ppf(0.0125, 3, 8))
    assert estimate.high == pytest.approx(stats.beta.ppf(0.9875, 9, 2))
    assert estimate.n == 10


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data())
def test_point_lies_on_the_roc_curve_and_never_exceeds_the_fpr(data: st.DataObject) -> None:
    values = st.integers(0, 12).map(float)
    members = np.array(data.draw(st.lists(values, min_size=1, max_size=30)))
    non_members = np.array(data.draw(st.lists(values, min_size=10, max_size=60)))
    fpr = data.draw(st.sampled_from([0.1, 0.2, 0.29, 0.3, 0.5, 0.7, 0.99]))
    is_member, scores = sample_of(members, non_members)
    curve = roc(is_member, scores)
    # the best point whose rate does not exceed fpr is what "tie-safe" means
    expected = curve.tpr[curve.fpr <= fpr + 1e-12].max()
    assert tpr_at_fpr(is_member, scores, fpr).value == pytest.approx(expected, abs=1e-12)


def test_rounding_of_the_fpr_does_not_lose_a_false_positive() -> None:
    assert 0.29 * 100 < 29  # the float product that would lose one
    members, non_members = np.array([70.5, 70.5]), np.arange(100.0)  # 29 non-members above 70.5
    assert tpr_at_fpr(*sample_of(members, non_members), 0.29).value == 1.0


def test_degenerate_scores() -> None:
    is_member = np.arange(1500) < 500
    perfect = tpr_at_fpr(is_member, is_member.astype(float), 0.01)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(0.0125 ** (1 / 500))
    tied = tpr_at_fpr(is_member, np.zeros(1500), 0.01)
    assert (tied.value, tied.low) == (0.0, 0.0)
    assert tied.high == pytest.approx(1 - 0.0125 ** (1 / 500))


def test_order_and_monotone_transforms_do_not_matter() -> None:
    rng = np.random.default_rng(SEED)
    is_member, scores = sample_of(rng.normal(1, 1, 100), rng.normal(size=500))
    shuffled = rng.permutation(600)
    expected = tpr_at_fpr(is_member, scores, 0.01)
    assert tpr_at_fpr(is_member[shuffled], np.exp(scores)[shuffled], 0.01) == expected


def test_extreme_confidence_widens_the_interval() -> None:
    rng = np.random.default_rng(SEED)
    sample = sample_of(rng.normal(1, 1, 1000), rng.normal(size=5000))
    usual, extreme = (tpr_at_fpr(*sample, 0.01, confidence=c) for c in (0.95, 1 - 1e-7))
    assert 0 < extreme.low < usual.low < usual.high < extreme.high < 1


@pytest.mark.parametrize(
    ("n0", "fpr", "needed"), [(200, 0.001, 1000), (99, 0.01, 100), (2, 1 / 3, 3)]
)
def test_an_unresolvable_fpr_is_refused_with_the_number_that_would_do(
    n0: int, fpr: float, needed: int
) -> None:
    with pytest.raises(UnresolvableFprError, match=f"at least {needed} non-members"):
        tpr_at_fpr(*sample_of(np.ones(5), np.zeros(n0)), fpr)
    assert min_non_members(fpr) == needed
    assert tpr_at_fpr(*sample_of(np.ones(5), np.zeros(needed)), fpr).value == 1.0


@pytest.mark.parametrize("confidence", [0.5, 0.95, 1 - 1e-7])
@pytest.mark.parametrize("fpr", [0.3, 0.05, 0.01])
def test_the_lower_limit_can_exceed_zero_exactly_from_the_stated_number(
    fpr: float, confidence: float
) -> None:
    needed = resolving_non_members(fpr, confidence)
    low = [
        tpr_at_fpr(*sample_of(np.ones(100), np.zeros(n0)), fpr, confidence=confidence).low
        for n0 in (needed - 1, needed)
    ]
    assert low[0] == 0 < low[1]


def test_numbers_to_plan_with() -> None:
    assert (min_non_members(0.01), resolving_non_members(0.01)) == (100, 437)
    assert (min_non_members(0.001), resolving_non_members(0.001)) == (1000, 4380)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, 5, float("nan")])
def test_bad_fpr_is_named(fpr: float) -> None:
    sample = sample_of(np.ones(5), np.zeros(100))
    with pytest.raises(ValueError, match=r"fpr = .* strictly between 0 and 1.*not a percentage"):
        tpr_at_fpr(*sample, fpr)
    with pytest.raises(ValueError, match="fpr = "):
        min_non_members(fpr)
    with pytest.raises(ValueError, match="confidence = "):
        tpr_at_fpr(*sample, 0.1, confidence=1.0)

"""Paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from fl_audit.results import Estimate
from fl_audit.stats import auc, auc_gain_ci, balanced_accuracy_ci, difference

SEED = 20_260_102
RUNS = 2000


def test_the_gain_is_the_difference_of_the_two_aucs() -> None:
    rng = np.random.default_rng(SEED)
    member = np.arange(60) < 25
    first, second = rng.normal(size=60) + member, rng.normal(size=60)
    found = auc_gain_ci(member, first, second)
    assert found.value == pytest.approx(auc(member, first) - auc(member, second))
    assert found.low < found.value < found.high
    same = auc_gain_ci(member, first, first)
    assert same.value == 0
    assert same.low < 0 < same.high  # no variance says nothing


def test_coverage_of_the_paired_interval() -> None:
    """Two noisy readings of one signal: equal AUC, so the true gain is 0. Nominal 95 %; of 2,000
    runs fewer than 92.5 % covering has probability below 1e-6 at a true coverage of 95 %."""
    rng = np.random.default_rng(SEED)
    member = np.arange(100) < 50
    covered = 0
    for _ in range(RUNS):
        common = rng.normal(size=100) + member
        first, second = (common + 0.5 * rng.normal(size=100) for _ in range(2))
        found = auc_gain_ci(member, first, second)
        covered += found.low <= 0 <= found.high
    assert covered / RUNS > 0.925


def test_a_difference_of_independent_estimates_spans_both_limits() -> None:
    first = Estimate(value=0.9, low=0.8, high=0.95, confidence=0.975, n=10)
    second = Estimate(value=0.5, low=0.4, high=0.6, confidence=0.975, n=20)
    found = difference(first, second)
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.2, 0.55))
    assert found.confidence == pytest.approx(0.95)


def test_balanced_accuracy_weighs_both_sides_alike() -> None:
    member = np.array([True] * 10 + [False] * 90)
    decisions = np.array([True] * 8 + [False] * 2 + [False] * 90)
    found = balanced_accuracy_ci(member, decisions)
    assert found.value == pytest.approx((0.8 + 1.0) / 2)
    assert found.low < found.value < found.high
    assert balanced_accuracy_ci(member, np.zeros(100, bool)).value == 0.5


def test_coverage_of_balanced_accuracy() -> None:
    """Nominal 95 %, conservative: below 93 % of 2,000 runs has probability below 1e-6."""
    rng = np.random.default_rng(SEED + 1)
    member = np.arange(80) < 30
    covered = 0
    for _ in range(RUNS):
        called = np.where(member, rng.random(80) < 0.7, rng.random(80) < 0.2)
        found = balanced_accuracy_ci(member, called)
        covered += found.low <= (0.7 + 0.8) / 2 <= found.high
    assert covered / RUNS > 0.93

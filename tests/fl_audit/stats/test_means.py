"""Means: Student's interval, cut to what can be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fl_audit.errors import InputError
from fl_audit.stats import mean_ci

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

"""Apportionment: sums exactly, and rounds by largest remainder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attacks.rounding import apportion

shares = arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1e6))


@given(shares, st.integers(0, 10_000))
def test_counts_sum_and_stay_within_one_of_the_exact_share(weights: np.ndarray, total: int) -> None:
    counts = apportion(weights, total)
    assert counts.sum() == total
    assert (counts >= 0).all()
    if weights.sum() > 0:
        exact = weights / weights.sum() * total
        assert (np.abs(counts - exact) < 1 + 1e-6).all()


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([0.5, 0.3, 0.2], 10, [5, 3, 2]),
        ([0.4, 0.35, 0.25], 2, [1, 1, 0]),
        ([0.0, 0.0], 3, [2, 1]),
    ],
)
def test_known_cases(weights: list[float], total: int, expected: list[int]) -> None:
    assert apportion(np.array(weights), total).tolist() == expected

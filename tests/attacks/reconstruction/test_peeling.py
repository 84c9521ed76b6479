"""Peeling: records out of sums, and no mixture among those that are confirmed."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.reconstruction.expected import peelable, share_by_peeling
from attacks.reconstruction.peeling import Peeled, could_be_records, most_noise, peel

SEED = 20_261_125
D = 40
BOUNDS = (np.zeros(D), np.ones(D))


def _batch(num: int, rows: int, share: float) -> tuple[np.ndarray, ...]:
    """Records, their signals, and random rows that a share of all records fires."""
    rng = np.random.default_rng(SEED)
    records, signals = rng.random((num, D)), rng.choice([-0.5, 0.5], num)
    weights = rng.normal(size=(rows, D))
    biases = -np.quantile(rng.random((2000, D)) @ weights.T, 1 - share, axis=0)
    fired = records @ weights.T + biases > 0
    sums = (fired * signals[:, None]).T @ np.column_stack([records, np.ones(num)])
    return records, signals, weights, biases, fired, sums


def _peel(sums: np.ndarray, weights: np.ndarray, biases: np.ndarray, unit: float | None) -> Peeled:
    variance = np.full(len(sums), 1e-20)
    return peel(
        sums,
        variance,
        lambda x: x @ weights.T + biases > 0,
        bounds=BOUNDS,
        unit=unit,
        rng=np.random.default_rng(SEED),
    )


@pytest.mark.parametrize(
    ("unit", "num", "rows", "share"), [(0.5, 12, 200, 0.33), (None, 12, 80, 0.15)]
)
def test_records_that_are_never_alone_at_first_come_out_too(
    unit: float | None, num: int, rows: int, share: float
) -> None:
    """Where signals have one size, each may be in a third of the rows; else rows must be rarer."""
    records, signals, weights, biases, fired, sums = _batch(num, rows, share)
    alone_at_first = fired[:, fired.sum(axis=0) == 1].any(axis=1)
    found = _peel(sums, weights, biases, unit)
    apart = np.abs(found.records[:, None] - records).max(axis=2)
    assert not alone_at_first.all()
    assert peelable(fired, equal=unit is not None).sum() == len(found.records) == num
    assert apart.min(axis=0).max() < 1e-8
    np.testing.assert_allclose(found.signals, signals[apart.argmin(axis=1)], rtol=1e-8)


def test_noise_alone_gives_no_record() -> None:
    """False-failure rate: 200 sums at about 1e-9 each."""
    rng = np.random.default_rng(SEED)
    sums = 0.1 * rng.normal(size=(200, D + 1))
    weights = rng.normal(size=(200, D))
    found = peel(
        sums,
        np.full(200, 0.01),
        lambda x: x @ weights.T > 0,
        bounds=BOUNDS,
        unit=None,
        rng=rng,
    )
    assert found.records.shape == (0, D)


def test_a_sum_of_two_is_no_record_where_the_size_of_signals_is_known() -> None:
    rng = np.random.default_rng(SEED)
    both = np.ones((3, D + 1))
    both[:, :-1] = rng.random((2, D)).sum(axis=0)
    both[:, -1] = 2.0
    everything = np.ones((1, D))  # any record is in all sums
    kept = _peel(both, np.tile(everything, (3, 1)), np.zeros(3), None)
    assert len(kept.records) == 1  # nothing tells their mean from a record
    assert len(_peel(both, np.tile(everything, (3, 1)), np.zeros(3), 1.0).records) == 0


def test_records_outside_the_range_are_mixtures() -> None:
    inside, outside = np.full(D + 1, 0.5), np.full(D + 1, 0.5)
    inside[-1], outside[-1] = 1.0, 0.25
    sums = np.stack([inside, outside, -inside])
    assert could_be_records(sums, np.full(3, 1e-12), BOUNDS).tolist() == [True, False, True]


def test_most_noise_is_rarely_passed() -> None:
    """20,000 sums of squares at about 1e-9 each; false-failure rate below 1e-4 of 1e-6 a seed."""
    rng = np.random.default_rng(SEED)
    squares = rng.chisquare(D, size=20_000)
    assert squares.max() < most_noise(D)
    assert most_noise(D) < 3.5 * D  # and not so large that it hides a record
    weak = np.zeros((1, D + 1))
    weak[0, -1] = 0.7  # its last entry is seven deviations, but all of it is no more than noise
    assert not could_be_records(weak, np.full(1, 0.01), BOUNDS).any()


def test_expected_shares_follow_the_pattern_of_firing() -> None:
    everyone_alone = np.repeat(np.eye(4, dtype=bool), 2, axis=1)
    assert peelable(everyone_alone, equal=False).all()
    assert not peelable(np.ones((4, 8), dtype=bool), equal=True).any()
    chain = np.array([[True, True, False], [False, True, True]])  # rows: A, A+B, B
    assert peelable(chain[:, :2], equal=True).all()  # A alone, then B
    assert peelable(chain[:, :2], equal=False).tolist() == [True, False]  # nothing confirms A
    rng = np.random.default_rng(SEED)
    assert share_by_peeling(everyone_alone, 4, equal=True, rng=rng) == 1.0

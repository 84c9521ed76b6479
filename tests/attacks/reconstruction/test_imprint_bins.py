"""Imprints: equally likely bins, and sums of bins out of cumulative and sparse rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from attacks.reconstruction.imprint_bins import (
    Imprint,
    Kind,
    alone,
    bin_of,
    bin_sums,
    fit_imprints,
    imprint_of,
    parallel_groups,
)
from fl_audit.errors import InputError

SEED = 20_261_125
D, K = 48, 16
FALSE_FAILURE = 1e-6


def _records(n: int, *, rng: np.random.Generator) -> np.ndarray:
    return rng.beta(2, 5, size=(n, D))


def _fit(kind: Kind, directions: int = 1) -> list[Imprint]:
    rng = np.random.default_rng(SEED)
    proxy = _records(4000, rng=rng)
    labels = np.arange(4000) % 4
    return fit_imprints(
        proxy, labels, K, input_shape=(D,), directions=directions, kind=kind, rng=rng
    )


def test_fresh_records_fill_all_bins_alike() -> None:
    """Chi-square of 20,000 records over 16 bins; bins of 4,000 records add 5 to 1 to it."""
    (imprint,) = _fit("cumulative")
    fresh = _records(20_000, rng=np.random.default_rng(SEED + 1))
    counts = bin_of(imprint, fresh, K).sum(axis=0)
    assert counts.sum() == 20_000  # none is below the lowest edge
    statistic = float(((counts - 1250) ** 2 / 1250).sum())
    assert statistic < (1 + 20_000 / 4000) * stats.chi2.ppf(1 - FALSE_FAILURE, K - 1)


def test_one_direction_is_one_imprint_and_two_are_two() -> None:
    one, two = _fit("cumulative", 2)
    rows = np.vstack([one.rows("cumulative")[0], two.rows("cumulative")[0]])
    assert [len(own) for own in parallel_groups(rows)] == [K, K]
    assert abs(one.direction @ two.direction) < 0.9


@pytest.mark.parametrize("kind", ["cumulative", "sparse"])
def test_bins_hold_the_records_that_lie_in_them(kind: Kind) -> None:
    """The gradient of rows, written out: who fires, times its signal."""
    rng = np.random.default_rng(SEED)
    (imprint,) = _fit(kind)
    records, signals = _records(6, rng=rng), rng.choice([-1.0, 1.0], 6)
    rows, biases = imprint.rows(kind)
    answers = records @ rows.T + biases
    fired = (answers > 0) & (answers < (np.inf if kind == "cumulative" else 1e-3))
    whole = np.column_stack([records, np.ones(6)]) * signals[:, None]
    mixed = rng.permutation(K)  # neurons stand in no order
    sums = (fired.T.astype(float) @ whole)[mixed]
    got, bins, _ = bin_sums(rows[mixed], biases[mixed], sums, np.full(K, 1e-24))
    expected = bin_of(imprint, records, K).T.astype(float) @ whole
    np.testing.assert_allclose(bins, expected, atol=1e-12)
    np.testing.assert_allclose(got.edges, imprint.edges, rtol=1e-9, atol=1e-9)
    assert len(imprint_of(rows, biases).edges) == K + (kind == "sparse")


def test_rows_between_two_records_are_averaged() -> None:
    """Noise of a record falls with the rows on either side; neighbours alone would give 2."""
    rng = np.random.default_rng(SEED)
    (imprint,) = _fit("cumulative")
    rows, biases = imprint.rows("cumulative")
    vector, noise = np.append(rng.random(D), 1.0) * 20, 0.1
    errors = []
    for _ in range(200):
        sums = np.zeros((K, D + 1))
        sums[: K // 2] = vector
        sums += rng.normal(0, noise, sums.shape)
        _, bins, variance = bin_sums(rows, biases, sums, np.full(K, 1e-12))
        errors.append(((bins[K // 2 - 1] - vector) ** 2).mean())
    ratio = float(np.mean(errors)) / noise**2
    # 200 x 49 squares: relative deviation 1.4 %; six of them, two-sided 2e-9
    assert abs(ratio - 2 / (K / 2)) < 0.09 * 2 / (K / 2)
    assert variance[K // 2 - 1] == pytest.approx(ratio * noise**2, rel=0.35)


def test_noise_makes_no_steps() -> None:
    """False-failure rate: 100 draws of 15 places to cut at about 1e-9 each."""
    rng = np.random.default_rng(SEED)
    (imprint,) = _fit("cumulative")
    rows, biases = imprint.rows("cumulative")
    for _ in range(100):
        sums = rng.normal(0, 0.3, (K, D + 1))
        _, bins, _ = bin_sums(rows, biases, sums, np.full(K, 1e-12))
        assert not bins[:-1].any()


def test_alone_is_the_probability_of_an_empty_rest() -> None:
    assert alone(8, 64) == pytest.approx(0.8956, abs=1e-4)
    assert alone(64, 128) == pytest.approx(0.6101, abs=1e-4)
    assert alone(1, 2) == 1.0


@pytest.mark.parametrize(
    ("proxy", "bins", "message"),
    [
        (np.ones((1, D)), K, "at least 2 records"),
        (np.ones((50, D)), K, "all alike"),
        (np.eye(D), 1, "2 bins"),
    ],
)
def test_what_gives_no_bins_is_refused(proxy: np.ndarray, bins: int, message: str) -> None:
    rng = np.random.default_rng(SEED)
    with pytest.raises(InputError, match=message):
        fit_imprints(proxy, np.zeros(len(proxy), int), bins, input_shape=(D,), rng=rng)

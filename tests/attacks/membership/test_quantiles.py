"""Shares below a value: equal to counting, to numpy's Hazen quantiles and to scipy's normal fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from attacks.membership.quantiles import (
    LogOdds,
    gaussian_log_odds,
    known_signal,
    linear_log_odds,
    rank_share,
    task_signal,
)
from attacks.shadows.target import Task
from fl_audit.errors import InputError, UnknownNameError

SEED = 20_261_123
LOG_ODDS = [linear_log_odds, gaussian_log_odds]


def problem(k: int = 7, n: int = 60) -> tuple[NDArray[Any], ...]:
    """Values, k model's values of each record, and a choice of three or more of them."""
    rng = np.random.default_rng(SEED)
    sample = rng.normal(size=n) * 3 + rng.normal(size=(k, n)) * rng.gamma(2, size=n)
    chosen = rng.permuted(np.arange(k)[:, None] < rng.integers(3, k + 1, size=n), axis=0)
    return sample[0] + rng.normal(size=n), sample, chosen


# -- shares of a population ----------------------------------------------------------------------


def test_share_of_a_population_counts_equal_records_half() -> None:
    rng = np.random.default_rng(SEED)
    population = rng.integers(8, size=50).astype(float)  # many ties
    values = np.unique(population)
    counted = [np.mean(population < v) + 0.5 * np.mean(population == v) for v in values]
    np.testing.assert_allclose(rank_share(values, population), counted, rtol=0, atol=1e-15)


def test_between_two_records_it_stays_within_half_a_record_of_the_count() -> None:
    rng = np.random.default_rng(SEED)
    population = np.repeat(rng.normal(size=30), 3)
    values = rng.normal(size=400) * 2
    counted = np.array([np.mean(population < v) for v in values])
    share = rank_share(values, population)
    assert (np.abs(share - counted) < 0.5 / len(population)).all()
    assert (share > 0).all()
    assert (share < 1).all()


def test_all_values_are_ordered_as_they_are() -> None:
    """Also far beyond the population, where the count alone would make them tie."""
    rng = np.random.default_rng(SEED)
    population = -rng.exponential(size=200) * 10.0 ** rng.integers(-6, 1, size=200)
    beyond = np.concatenate([population.max() * 10.0 ** -np.arange(1, 6), 10.0 ** np.arange(6)])
    values = np.unique(np.concatenate([population, beyond, -beyond, rng.normal(size=100)]))
    assert (np.diff(rank_share(values, population)) > 0).all()


def test_tails_are_in_units_of_the_outermost_tenth() -> None:
    population = np.concatenate([np.arange(18.0), [20.0, 30.0]])  # tenths: 0 to 2, and 17 to 30
    found = rank_share(np.array([-6.0, 30.0 + 26.0]), population)
    np.testing.assert_allclose(found, [0.5 / 4 / 20, 1 - 0.5 / 3 / 20], rtol=1e-14)


@pytest.mark.parametrize("population", [np.zeros(1), np.zeros(5)])
def test_a_population_without_a_range_orders_values_too(population: NDArray[np.float64]) -> None:
    values = np.array([-3.0, -1.0, 0.0, 2.0, 5.0])
    share = rank_share(values, population)
    assert share[2] == 0.5
    assert (np.diff(share) > 0).all()


def test_an_empty_population_is_refused() -> None:
    with pytest.raises(InputError, match="needs at least one record"):
        rank_share(np.zeros(2), np.zeros(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_names_its_record(bad: float) -> None:
    values = np.array([0.0, 1.0, bad])
    with pytest.raises(InputError, match="signal of record 2"):
        rank_share(values, np.zeros(3))
    with pytest.raises(InputError, match="signal of population record 2"):
        rank_share(np.zeros(3), values)


# -- quantiles of each record's models -----------------------------------------------------------


def test_linear_is_the_inverse_of_hazens_quantile() -> None:
    _, sample, chosen = problem()
    records = np.arange(sample.shape[1])
    share = np.random.default_rng(SEED).uniform(0.2, 0.8, size=records.shape)  # within the extremes
    out = [sample[chosen[:, r], r] for r in records]
    values = np.array([np.quantile(out[r], share[r], method="hazen") for r in records])
    expected = np.log(share / (1 - share))
    np.testing.assert_allclose(linear_log_odds(values, sample, chosen), expected, atol=1e-12)


def test_linear_counts_equal_values_half() -> None:
    sample = np.array([[1.0, 1.0], [2.0, 2.0], [2.0, 2.0], [3.0, 9.0]])
    chosen = np.ones((4, 2), dtype=np.bool_)
    values = np.array([2.0, 9.0])
    expected = np.log([2.0 / 2.0, 3.5 / 0.5])
    np.testing.assert_allclose(linear_log_odds(values, sample, chosen), expected, atol=1e-15)


def test_beyond_one_value_a_record_the_tail_is_in_units_of_their_spread() -> None:
    sample = np.array([[0.0, 4.0, 2.0]])
    distance = np.array([1.0, 3.0, -5.0])
    spread = sample.std()
    expected = np.sign(distance) * np.log(1 + 2 * np.abs(distance) / spread)
    found = linear_log_odds(sample[0] + distance, sample, np.ones((1, 3), dtype=np.bool_))
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_gaussian_is_scipys_fit_of_the_chosen_values() -> None:
    values, sample, chosen = problem()
    fits = [stats.norm(*stats.norm.fit(s[c])) for s, c in zip(sample.T, chosen.T, strict=True)]
    expected = [f.logcdf(v) - f.logsf(v) for f, v in zip(fits, values, strict=True)]
    np.testing.assert_allclose(gaussian_log_odds(values, sample, chosen), expected, rtol=1e-10)


@pytest.mark.parametrize("log_odds", LOG_ODDS)
def test_values_that_were_not_chosen_do_not_count(log_odds: LogOdds) -> None:
    values, sample, chosen = problem()
    other = np.where(chosen, sample, np.nan)
    np.testing.assert_array_equal(log_odds(values, sample, chosen), log_odds(values, other, chosen))


@pytest.mark.parametrize("log_odds", LOG_ODDS)
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_units_of_the_signal_do_not_matter(log_odds: LogOdds, scale: float) -> None:
    values, sample, chosen = problem()
    found = log_odds(scale * values, scale * sample, chosen)
    np.testing.assert_allclose(found, log_odds(values, sample, chosen), rtol=1e-6)


@pytest.mark.parametrize("log_odds", LOG_ODDS)
def test_records_beyond_all_models_are_still_ordered(log_odds: LogOdds) -> None:
    """Where P rounds to 0 or 1, log-odds go on, and stay finite."""
    values = np.array([-1e200, -1e9, -1e3, -50.0, 0.0, 50.0, 1e3, 1e9])
    sample = np.repeat([[-1.0], [0.5], [1.0]], len(values), axis=1)
    found = log_odds(values, sample, np.ones(sample.shape, dtype=np.bool_))
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("log_odds", LOG_ODDS)
def test_models_that_all_answer_alike_give_finite_log_odds(log_odds: LogOdds) -> None:
    sample = np.zeros((3, 3))
    chosen = np.ones((3, 3), dtype=np.bool_)
    found = log_odds(np.array([-1.0, 0.0, 1.0]), sample, chosen)
    assert np.isfinite(found).all()
    assert found[0] < found[1] == 0 < found[2]


def test_too_few_values_name_the_record() -> None:
    values, sample, chosen = problem()
    chosen[:, 4] = False
    with pytest.raises(InputError, match="out-models of record 4 = 0: at least 1"):
        linear_log_odds(values, sample, chosen)
    chosen[0, 4] = True
    with pytest.raises(InputError, match="out-models of record 4 = 1: at least 2"):
        gaussian_log_odds(values, sample, chosen)


def test_shapes_that_do_not_fit_and_nan_are_refused() -> None:
    values, sample, chosen = problem()
    with pytest.raises(InputError, match="must have shapes"):
        linear_log_odds(values[:-1], sample, chosen)
    sample[np.flatnonzero(chosen[:, 9])[0], 9] = np.nan
    with pytest.raises(InputError, match="shadow models' signal of record 9"):
        linear_log_odds(values, sample, chosen)


# -- names of signals ----------------------------------------------------------------------------


def test_names_of_signals_are_checked_and_users_code_is_not_imported() -> None:
    assert known_signal("entropy") == "entropy"
    assert known_signal("no_such_module:function") == "no_such_module:function"
    with pytest.raises(UnknownNameError, match="Did you mean 'entropy'"):
        known_signal("entrpy")


@pytest.mark.parametrize("name", ["confidence", "entropy"])
def test_how_sure_a_regression_model_is_cannot_be_asked(name: str) -> None:
    with pytest.raises(InputError, match="does not say how sure it is"):
        task_signal(name, Task("regression", 2))
    assert callable(task_signal(name, Task("classification", 2)))
    assert callable(task_signal("loss", Task("regression", 2)))

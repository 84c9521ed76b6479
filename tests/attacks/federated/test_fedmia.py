"""FedMIA: the place among the others, pooled variances, and too few clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from attacks.federated.fedmia import fedmia_scores, place_among_others, shrink_variances
from fl_audit.errors import InputError

SEED = 20_261_125


def test_the_place_is_that_in_the_normal_distribution_of_the_others() -> None:
    values = np.array([[0.0, 9.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    found = place_among_others(values, variance="record")
    others = values[1:]
    z = (values[0] - others.mean(axis=0)) / np.sqrt(others.var(axis=0, ddof=1) + 1e-8)
    np.testing.assert_allclose(found[0], norm.cdf(z) - 1, atol=1e-12)


def test_an_outlier_among_the_others_is_left_out() -> None:
    """Another client may hold the record, too: its value must not widen the null."""
    rng = np.random.default_rng(SEED)
    values = rng.normal(size=(13, 1))
    values[-1] = 50.0
    found = place_among_others(values, variance="record")
    without = place_among_others(values[:-1], variance="record")
    np.testing.assert_allclose(found[0], without[0], atol=1e-9)


def test_pooling_recovers_the_spread_that_few_values_cannot_tell() -> None:
    """Equal true variances: with 3 degrees of freedom each, pooling must come close to them.

    The mean squared log error of a chi-square variance with 3 degrees of freedom is about 1.2;
    pooled over 2,000 it must be a hundredth of that. False-failure rate far below 1e-6.
    """
    rng = np.random.default_rng(SEED)
    degrees = np.full(2_000, 3.0)
    sample = 4.0 * rng.chisquare(3, size=2_000) / 3
    pooled = shrink_variances(sample, degrees)
    assert np.mean(np.log(sample / 4.0) ** 2) > 0.8
    assert np.mean(np.log(pooled / 4.0) ** 2) < 0.012


def test_pooling_leaves_variances_that_do_differ() -> None:
    rng = np.random.default_rng(SEED)
    true = np.exp(rng.normal(0, 1, size=2_000))
    sample = true * rng.chisquare(100, size=2_000) / 100
    pooled = shrink_variances(sample, np.full(2_000, 100.0))
    assert np.corrcoef(np.log(pooled), np.log(sample))[0, 1] > 0.999
    assert np.mean(np.abs(np.log(pooled / sample))) < 0.05


def test_scores_keep_their_digits_near_one() -> None:
    values = np.concatenate([[[10.0, 11.0, 12.0]], np.random.default_rng(SEED).normal(size=(4, 3))])
    found = place_among_others(values)[0]
    assert (found < 0).all()
    assert len(np.unique(found)) == 3


def test_two_clients_are_no_null(hand: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    data, model = hand.records(4, rng=rng), hand.weights(rng=rng)
    replies = {i: hand.step(model, hand.gradient(model, data, [i])) for i in range(3)}
    two = hand.view(tmp_path / "two", [(model, {0: replies[0], 1: replies[1]}, None)])
    with pytest.raises(InputError, match="two of them are the least"):
        fedmia_scores(two, data)
    three = hand.view(tmp_path / "three", [(model, replies, None)])
    for statistic in ("loss", "cosine"):
        scores = fedmia_scores(three, data, statistic=statistic)  # type: ignore[arg-type]
        assert scores.shape == (4,)
    none = hand.view(tmp_path / "none", [(model, {0: None}, None)])
    with pytest.raises(InputError, match="no signal"):
        fedmia_scores(none, data)

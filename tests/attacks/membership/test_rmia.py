"""RMIA: a peer's scores to 1e-9, and the pairwise definition counted one pair at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from attacks.membership.rmia import ATTACK, pairwise_share, rmia_ratios, rmia_scores
from fl_audit.errors import InputError
from fl_audit.stats import auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40
# One synthetic problem and the scores that LeakPro (2026-06) gives on it (gamma 2, temperature 2,
# offline_a 0.33; all 400 records are the population): shared/oracles/membership.npz.
ORACLE = Path(__file__).with_name("oracle.npz")
Mode = Literal["online", "offline"]


def naive(
    ratios: NDArray[np.float64], population: NDArray[np.float64], gamma: float
) -> NDArray[np.float64]:
    """The definition: pair by pair, in plain floats."""
    counts = [sum(float(r) / float(z) > gamma for z in population) for r in ratios]
    return np.array(counts) / len(population)


def random_problem(n: int = 30, k: int = 5) -> tuple[NDArray[Any], ...]:
    rng = np.random.default_rng(SEED)
    in_shadow = rng.permuted(np.arange(k)[:, None] < np.full(n, k // 2), axis=0)
    labels = rng.integers(3, size=n)
    return rng.normal(0, 2, (n, 3)), rng.normal(0, 2, (k, n, 3)), in_shadow, labels


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_scores_agree_with_a_peer(mode: Mode) -> None:
    arrays = np.load(ORACLE, allow_pickle=False)
    names = ("target_logits", "shadow_logits", "in_shadow", "labels")
    found = rmia_scores(*(arrays[n] for n in names), mode=mode, offline_a=0.33)
    expected = arrays[f"rmia_{mode}"]
    assert np.abs(found - expected).max() <= 1e-9
    assert expected.std() > 0.1  # numbers that agree by being all alike would prove nothing


# -- the pairwise share --------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.7, 2.0, 3.3])
def test_share_is_the_definition_where_every_pair_is_on_the_edge(gamma: float) -> None:
    """ratio = gamma * z up to rounding, so that '>' and the division's last bit decide."""
    rng = np.random.default_rng(SEED)
    population = np.repeat(rng.gamma(2, size=60), 3)  # ties
    edge = gamma * population
    ratios = np.concatenate([edge, np.nextafter(edge, 0), np.nextafter(edge, np.inf)])
    np.testing.assert_array_equal(
        pairwise_share(ratios, population, gamma=gamma), naive(ratios, population, gamma)
    )


def test_rounding_at_the_edge_is_not_what_a_product_would_give() -> None:
    """There are pairs for which ratio / z > gamma and z < ratio / gamma differ in floats."""
    rng = np.random.default_rng(SEED)
    population, gamma = rng.gamma(2, size=500), 1.7
    ratios = gamma * population
    by_division = ratios / population > gamma
    assert (by_division != (population < ratios / gamma)).any()
    found = np.array([pairwise_share(r[None], z[None], gamma=gamma)[0]
                      for r, z in zip(ratios, population, strict=True)])  # fmt: skip
    np.testing.assert_array_equal(found, by_division)


def test_exactly_gamma_is_not_more_than_gamma() -> None:
    share = pairwise_share(np.array([2.0, 4.0, 4.1]), np.array([1.0, 2.0, 2.0, 8.0]), gamma=2.0)
    np.testing.assert_array_equal(share, [0.0, 0.25, 0.75])


@given(
    ratios=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20),
    population=st.lists(st.sampled_from([0.1, 0.3, 0.7, 1.0, 1.1, 3.0]), min_size=1, max_size=20),
    gamma=st.floats(0.1, 10),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_share_is_the_definition(
    ratios: list[float], population: list[float], gamma: float
) -> None:
    r, z = np.array(ratios), np.array(population)
    np.testing.assert_array_equal(pairwise_share(r, z, gamma=gamma), naive(r, z, gamma))
    at_edge = z * gamma
    np.testing.assert_array_equal(pairwise_share(at_edge, z, gamma=gamma), naive(at_edge, z, gamma))


def test_an_empty_population_is_refused() -> None:
    with pytest.raises(InputError, match="needs at least one record"):
        pairwise_share(np.ones(2), np.ones(0), gamma=1.0)


# -- the ratios ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_scores_are_the_papers_formula(mode: Mode, temperature: float) -> None:
    target, shadow, in_shadow, labels = random_problem()
    rows, a, gamma = np.arange(len(labels)), 0.4, 1.5
    p_target = softmax(target / temperature, axis=1)[rows, labels]
    p_shadow = softmax(shadow / temperature, axis=2)[:, rows, labels]
    p_x = p_z = p_shadow.mean(axis=0)
    if mode == "offline":
        p_out = np.array([p_shadow[~in_shadow[:, r], r].mean() for r in rows])
        p_x, p_z = (((1 + a) * p + (1 - a)) / 2 for p in (p_out, p_z))
    ratio_z = rmia_ratios(target, shadow, labels, mode=mode, temperature=temperature, offline_a=a)
    np.testing.assert_allclose(ratio_z, p_target / p_z, rtol=1e-12)
    found = rmia_scores(
        target, shadow, in_shadow, labels, mode=mode, gamma=gamma, temperature=temperature,
        offline_a=a,
    )  # fmt: skip
    np.testing.assert_array_equal(found, naive(p_target / p_x, p_target / p_z, gamma))
    among_others = rmia_scores(
        target, shadow, in_shadow, labels, mode=mode, gamma=gamma, temperature=temperature,
        offline_a=a, population_ratios=np.array([0.5, 1.0, 2.0]),
    )  # fmt: skip
    expected = naive(p_target / p_x, np.array([0.5, 1.0, 2.0]), gamma)
    np.testing.assert_array_equal(among_others, expected)


def test_offline_ignores_models_with_the_record_except_in_the_population() -> None:
    target, shadow, in_shadow, labels = random_problem()
    z = np.linspace(0.1, 3, 50)
    before = rmia_scores(target, shadow, in_shadow, labels, mode="offline", population_ratios=z)
    shadow[in_shadow] = 50.0
    after = rmia_scores(target, shadow, in_shadow, labels, mode="offline", population_ratios=z)
    np.testing.assert_array_equal(after, before)


# -- on targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("num", [4, 16])
def test_null_candidates_look_alike(memorised: Any, mode: str, num: int) -> None:
    is_member, output = memorised.run(ATTACK, part="null", mode=mode, num_shadow_models=num)
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("num", [4, 16])
def test_members_stand_out(memorised: Any, mode: str, num: int) -> None:
    is_member, output = memorised.run(ATTACK, mode=mode, num_shadow_models=num)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_a_is_tuned_without_the_truth_unless_it_is_given(memorised: Any) -> None:
    notes = memorised.run(ATTACK, mode="offline", num_shadow_models=4)[1].notes
    assert "tuned on a shadow model" in notes[1]
    given_a = memorised.run(ATTACK, mode="offline", num_shadow_models=4, offline_a=0.5)[1]
    assert len(given_a.notes) == 1


def test_bad_input_is_refused() -> None:
    target, shadow, in_shadow, labels = random_problem()
    in_shadow[:, 4] = True
    with pytest.raises(InputError, match="out-models of record 4 = 0"):
        rmia_scores(target, shadow, in_shadow, labels, mode="offline")
    rmia_scores(target, shadow, in_shadow, labels)  # online asks all models
    with pytest.raises(InputError, match="label of record 0 = 3"):
        rmia_scores(target, shadow, in_shadow, labels + (np.arange(30) == 0) * (3 - labels[0]))
    target[3, 1] = np.inf
    with pytest.raises(InputError, match="logits of record 3"):
        rmia_scores(target, shadow, in_shadow, labels)

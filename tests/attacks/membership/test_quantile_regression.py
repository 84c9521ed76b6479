"""Quantile regression: known conditional distributions, rows in step, and trained targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from attacks.membership.quantile_regression import (
    ATTACK,
    Settings,
    quantile_regression_scores,
)
from attacks.shadows.lab import Lab
from attacks.shadows.target import Target, Task
from attacks.shadows.workshop import Workshop
from fl_audit.attack_spec import AttackInput, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import LazyInputs, Records
from fl_audit.stats import auc, auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40


def non_members(num: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(signal, features): the signal is normal with mean 4 a and deviation 1 or 3, by b."""
    rng = np.random.default_rng([SEED, seed])
    features = np.column_stack([rng.uniform(-1, 1, num), rng.integers(2, size=num)])
    deviation = 1 + 2 * features[:, 1]
    return 4 * features[:, 0] + deviation * rng.normal(size=num), features


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def test_gaussian_scores_are_z_scores_under_the_conditional_distribution() -> None:
    signal, features = non_members(4000, 0)
    _, asked = non_members(500, 1)
    deviation = 1 + 2 * asked[:, 1]
    for z in (-1.0, 0.0, 2.0):
        target = 4 * asked[:, 0] + z * deviation
        found = quantile_regression_scores(target, asked, signal, features, rng=rng())
        # over 40 seeds the median error was at most 0.10, 0.13 and 0.17 on average, with a standard
        # deviation of 0.02: the bounds are 5 of them away; a deviation 20 % off breaks the last
        assert np.median(np.abs(found - z)) < 0.2 + 0.05 * abs(z)


def test_quantile_scores_are_above_zero_for_the_stated_share_of_non_members() -> None:
    signal, features = non_members(4000, 0)
    fresh, asked = non_members(4000, 1)
    found = quantile_regression_scores(
        fresh, asked, signal, features, regressor="quantile", quantile=0.9, rng=rng()
    )
    # of 2,000 in each half, a tenth has a standard deviation of 0.7 %; the fit's own is as large:
    # 5 % is 5 of both together
    for half in (0, 1):
        assert abs((found[asked[:, 1] == half] > 0).mean() - 0.1) < 0.05


def test_a_record_is_held_to_the_standard_of_its_like() -> None:
    """Members are a deviation above their own mean: the signal alone hardly tells."""
    signal, features = non_members(4000, 0)
    others, asked = non_members(1000, 1)
    is_member = np.arange(1000) < 500
    target = others + np.where(is_member, 1 + 2 * asked[:, 1], 0)
    found = quantile_regression_scores(target, asked, signal, features, rng=rng())
    # a shift by one deviation is told with probability Phi(1 / sqrt 2) = 0.76; both this and the
    # gain of 0.10 have a standard deviation of 0.013
    assert auc(is_member, target) + 0.02 < auc(is_member, found) < 0.84


def test_signals_and_features_are_taken_row_by_row() -> None:
    """Rows out of step would leave nothing to predict."""
    signal, features = non_members(1000, 0)
    signal = 4 * features[:, 0]
    asked = features[:200] + 0.001
    found = [
        quantile_regression_scores(
            signal[:200], asked, signal, order, regressor="quantile", quantile=0.5, rng=rng()
        ).std()
        for order in (features, features[::-1])
    ]
    assert 5 * found[0] < found[1]


@pytest.mark.parametrize("settings", [{}, {"regressor": "quantile"}], ids=str)
def test_null_candidates_look_alike(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, found = memorised.run(ATTACK, "null", **settings)
    estimate = auc_ci(is_member, found.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("settings", [{}, {"regressor": "quantile"}], ids=str)
def test_memorised_members_stand_out(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, found = memorised.run(ATTACK, **settings)
    assert auc_ci(is_member, found.scores, confidence=CONFIDENCE).low > 0.5


def image_lab(*, lazy: bool) -> Lab:
    """60 + 140 images of 300 numbers and a linear model: as an array, or read when asked for."""
    draw = np.random.default_rng(SEED)
    images = draw.normal(size=(200, 3, 10, 10)).astype(np.float32)
    inputs: Any = images
    if lazy:
        inputs = LazyInputs(lambda rows: images[rows], np.arange(200), (3, 10, 10))
    pool = Records(np.arange(200), inputs, draw.integers(2, size=200))
    weight = draw.normal(size=(300, 2))
    model = Target(lambda asked: asked.reshape(len(asked), -1) @ weight)
    task = Task("classification", 2)
    workshop = Workshop(pool, 60, task, trainer=None, train_size=60, seed=0)
    return Lab(workshop, model, np.arange(60), np.arange(60, 200))


def scores(lab: Lab, **settings: Any) -> NDArray[np.float64]:
    view: Any = None
    given = AttackInput(view=view, settings=Settings(**settings), rng=rng(), lab=lab)
    output = ATTACK.run(given)
    assert isinstance(output, MembershipScores)
    return output.scores


def test_large_inputs_are_reduced_and_may_be_lazy() -> None:
    found = scores(image_lab(lazy=False), num_components=4)
    assert found.shape == (60,)
    assert found.tobytes() == scores(image_lab(lazy=True), num_components=4).tobytes()
    assert found.tobytes() != scores(image_lab(lazy=False), num_components=32).tobytes()


def test_regression_targets_take_the_place_of_classes() -> None:
    """A model that answers 0 is wrong wherever the target is far from 0, as the target tells."""
    draw = np.random.default_rng(SEED)
    targets = draw.normal(size=1000).astype(np.float32)
    inputs = draw.normal(size=(1000, 2)).astype(np.float32)
    records = Records(np.arange(1000), inputs, np.zeros(1000, np.int64), targets)
    model = Target(lambda asked: np.zeros((len(asked), 1)))
    workshop = Workshop(records, 200, Task("regression", 2), trainer=None, train_size=60, seed=0)
    lab = Lab(workshop, model, np.arange(200), np.arange(200, 1000))
    far = np.abs(targets[:200])
    assert stats.spearmanr(workshop.ask(model, lab.rows)[:, 0], far).statistic < -0.99
    # over 40 seeds -0.04 on average, with a standard deviation of 0.11
    assert abs(stats.spearmanr(scores(lab), far).statistic) < 0.75


def test_bad_input_is_refused(overfitted: Any) -> None:
    signal, features = non_members(60, 0)
    with pytest.raises(InputError, match=r"population_features .* must have shape \(60, d\)"):
        quantile_regression_scores(signal, features, signal, features[:50], rng=rng())
    with pytest.raises(InputError, match="population = 40: needs at least 50"):
        quantile_regression_scores(signal, features, signal[:40], features[:40], rng=rng())
    few = replace(overfitted.candidates, population=overfitted.candidates.population[:40])
    with pytest.raises(InputError, match="auxiliary records = 40"):
        replace(overfitted, candidates=few).run(ATTACK)


@pytest.mark.parametrize("bad", [{"quantile": 1.0}, {"regressor": "tree"}, {"num_components": 0}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**bad)

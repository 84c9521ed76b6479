"""Boundary distance: equal to the true distance where it is known; labels alone are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from attacks.membership.boundary_distance import ATTACK, Settings, boundary_distance_scores
from attacks.shadows.target import Target
from fl_audit.errors import InputError
from fl_audit.stats import auc, auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40
Points = NDArray[np.float32]


def generator() -> np.random.Generator:
    return np.random.default_rng(SEED)


def problem(num: int, size: int) -> tuple[Points, NDArray[np.float64]]:
    rng = generator()
    return rng.normal(size=(num, size)).astype(np.float32), rng.normal(size=size)


def with_errors(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of which every fourth is not the model's answer."""
    return np.where(np.arange(len(classes)) % 4 == 0, 1 - classes, classes)


@pytest.mark.parametrize("size", [1, 2, 20])
def test_distance_to_a_hyperplane_is_met_from_above_within_a_tenth(size: int) -> None:
    inputs, weights = problem(60, size)

    def classes(points: Points) -> NDArray[np.int64]:
        return (points @ weights > 0.3).astype(np.int64)

    labels = with_errors(classes(inputs))
    found = boundary_distance_scores(classes, inputs, labels, rng=generator(), clip=(-9, 9))
    distances = np.abs(inputs @ weights - 0.3) / np.linalg.norm(weights)
    ratios = found.scores / np.where(labels == classes(inputs), distances, -distances)
    assert ratios.min() > 1 - 1e-5  # float32 inputs
    assert ratios.max() < 1.1
    assert found.is_reached.all()


def test_distance_to_a_sphere_is_met_from_both_sides() -> None:
    inputs, _ = problem(60, 8)
    radius = float(np.median(np.linalg.norm(inputs, axis=1)))

    def classes(points: Points) -> NDArray[np.int64]:
        outside: NDArray[np.bool_] = np.linalg.norm(points, axis=1) > radius
        return outside.astype(np.int64)

    labels = with_errors(classes(inputs))
    found = boundary_distance_scores(classes, inputs, labels, rng=generator(), clip=(-5, 5))
    distances = np.abs(np.linalg.norm(inputs, axis=1) - radius)
    ratios = np.abs(found.scores) / distances
    assert ratios.min() > 1 - 1e-4
    assert np.median(ratios) < 1.1


def test_more_steps_come_closer() -> None:
    inputs, weights = problem(60, 100)

    def classes(points: Points) -> NDArray[np.int64]:
        return (points @ weights > 0).astype(np.int64)

    one, ten, sixty = (
        boundary_distance_scores(
            classes, inputs, classes(inputs), rng=generator(), iterations=num
        ).scores
        for num in (1, 10, 60)
    )
    assert (sixty < ten).all()
    assert (ten < one).all()


def test_a_wrong_answer_scores_minus_the_distance_to_the_right_one() -> None:
    """Not to the nearest boundary: two classes lie between the record and its label."""
    inputs = np.array([[-1.0], [2.5], [0.5]], dtype=np.float32)

    def classes(points: Points) -> NDArray[np.int64]:
        return np.digitize(points[:, 0], [0.0, 1.0])

    found = boundary_distance_scores(classes, inputs, np.array([2, 2, 0]), rng=generator())
    np.testing.assert_allclose(found.scores, [-2.0, 1.5, -0.5], rtol=2e-3)


def test_where_nothing_lies_beyond_the_farthest_corner_stands_for_it() -> None:
    inputs = np.full((2, 4), 0.25, dtype=np.float32)

    def classes(points: Points) -> NDArray[np.int64]:
        return np.zeros(len(points), dtype=np.int64)

    found = boundary_distance_scores(
        classes, inputs, np.array([0, 1]), rng=generator(), clip=(0.0, 1.0)
    )
    np.testing.assert_allclose(found.scores, [1.5, -1.5])
    assert not found.is_reached.any()


@pytest.mark.parametrize("shape", [(3, 16, 16), (768,)])
def test_queries_are_few_counted_bounded_and_of_the_inputs_shape(shape: tuple[int, ...]) -> None:
    inputs = generator().uniform(-2, 3, (30, *shape)).astype(np.float32)
    asked: list[int] = []

    def classes(points: Points) -> NDArray[np.int64]:
        assert points.shape[1:] == shape
        assert points.nbytes <= 1 << 22
        assert points.dtype == np.float32
        assert inputs.min() <= points.min()
        assert points.max() <= inputs.max()
        asked.append(len(points))
        is_bright: NDArray[np.bool_] = points.reshape(len(points), -1).sum(axis=1) > 384
        return is_bright.astype(np.int64)

    found = boundary_distance_scores(
        classes, inputs, classes(inputs), rng=generator(), evaluations=20, iterations=4
    )
    assert found.queries_each * len(inputs) == sum(asked[1:])
    gradients = sum(round(20 * t**0.5) for t in range(1, 5))
    assert gradients + 5 * 10 < found.queries_each < gradients + 5 * 10 + 4 * 12 + 2
    assert len(asked) < 30 * 4, "records are asked about together"


def test_the_order_of_records_does_not_matter() -> None:
    """All records see the same noise, so that a score is not a matter of luck."""
    inputs, weights = problem(40, 10)

    def classes(points: Points) -> NDArray[np.int64]:
        return (points @ weights > 0).astype(np.int64)

    def scores(order: NDArray[np.int64]) -> NDArray[np.float64]:
        chosen = inputs[order]
        return boundary_distance_scores(classes, chosen, classes(chosen), rng=generator()).scores

    order = generator().permutation(40)
    np.testing.assert_allclose(scores(order), scores(np.arange(40))[order], rtol=1e-3)


def test_null_candidates_look_alike(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK, part="null")
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


def test_members_stand_out_and_more_so_than_by_right_answers_alone(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5
    assert auc(is_member, output.scores) > auc(is_member, np.sign(output.scores)) + 0.01
    assert "queries a record" in output.notes[0]


def test_labels_are_all_that_it_uses(memorised: Any) -> None:
    predict: Callable[[Points], NDArray[np.floating]] = memorised.candidates.target.predict

    def labels_only(inputs: Points) -> NDArray[np.floating]:
        one_hot: NDArray[np.floating] = np.eye(10)[predict(inputs).argmax(axis=1)]
        return one_hot

    lab = replace(memorised.candidates, target=Target(labels_only))
    _, expected = memorised.run(ATTACK, iterations=2)
    _, output = replace(memorised, candidates=lab).run(ATTACK, iterations=2)
    np.testing.assert_array_equal(output.scores, expected.scores)


def test_bad_input_is_refused(memorised: Any) -> None:
    with pytest.raises(ValidationError, match="smaller"):
        Settings(clip=(1.0, 0.0))
    with pytest.raises(InputError, match=r"record 0 = .*within clip = \(0\.9, 1\.0\)"):
        memorised.run(ATTACK, clip=(0.9, 1.0))

"""Augmentation consistency: copies checked with numpy and scipy, shares with the normal law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, stats

from attacks.membership import augmentation_consistency
from attacks.membership.augmentation_consistency import (
    ATTACK,
    Settings,
    augmentation_consistency_scores,
    feature_deviations,
    image_transform,
)
from attacks.shadows.lab import Lab
from attacks.shadows.target import Target, Task
from attacks.shadows.workshop import Workshop
from fl_audit.attack_spec import AttackInput, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import LazyInputs, Records
from fl_audit.stats import auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40
Points = NDArray[np.float32]


def run(
    inputs: Points,
    auxiliary: Points,
    is_one: Callable[[Points], NDArray[np.bool_]],
    **settings: Any,
) -> MembershipScores:
    """The attack on a model with two classes; all candidates are of class 1."""
    everything = np.concatenate([inputs, auxiliary])
    pool = Records(np.arange(len(everything)), everything, np.ones(len(everything), np.int64))
    target = Target(lambda points: np.eye(2)[is_one(points).astype(np.int64)])
    workshop = Workshop(
        pool, len(inputs), Task("classification", 2), trainer=None, train_size=1, seed=0
    )
    lab = Lab(workshop, target, np.arange(len(inputs)), np.arange(len(inputs), len(everything)))
    view: Any = None  # an attack on a model looks at none
    rng = np.random.default_rng(SEED)
    output = ATTACK.run(AttackInput(view=view, settings=Settings(**settings), rng=rng, lab=lab))
    assert isinstance(output, MembershipScores)
    return output


def test_scores_are_shares_of_right_answers() -> None:
    answers = np.array([[0, 1, 2], [0, 2, 1], [0, 2, 0], [3, 2, 0]])
    scores = augmentation_consistency_scores(answers, np.array([0, 2, 2]))
    np.testing.assert_array_equal(scores, [0.75, 0.75, 0.25])


def test_share_under_noise_is_the_normal_law_and_noise_is_shared() -> None:
    """A threshold at 0: P(x + s z > 0) = Phi(x / s), with s = noise * standard deviation."""
    auxiliary = np.random.default_rng(SEED).normal(5, 3, (400, 1)).astype(np.float32)
    inputs = np.linspace(-2, 2, 41, dtype=np.float32)[:, None]
    output = run(inputs, auxiliary, lambda x: x[:, 0] > 0, noise=0.2, num=5000)
    expected = stats.norm.cdf(inputs[:, 0] / (0.2 * auxiliary.std()))
    assert np.abs(output.scores - expected).max() < stats.kstwo.ppf(1 - 1e-6, 5000)
    assert (np.diff(output.scores) >= 0).all(), "with noise of its own a record could overtake"
    assert output.notes == ("5001 queries a record (noise).",)


def test_image_copies_are_the_record_its_mirror_shifts_and_rotations() -> None:
    """One bright pixel in the middle stays there when mirrored or rotated, and not when shifted."""
    inputs = np.zeros((2, 1, 7, 7), dtype=np.float32)
    inputs[0, 0, 3, 3] = inputs[1, 0, 3, 5] = 1

    def centre(points: Points) -> NDArray[np.bool_]:
        return points[:, 0, 3, 3] > 0.9

    auxiliary = np.zeros((0, 1, 7, 7), dtype=np.float32)
    output = run(inputs, auxiliary, centre, shift=2)
    np.testing.assert_allclose(output.scores, [4 / 16, 1 / 16])
    assert output.notes == ("16 queries a record (image).",)
    np.testing.assert_allclose(
        run(inputs, auxiliary, centre, shift=1, mirror=False, angle=0).scores, [1 / 5, 0]
    )


def test_shift_mirror_and_rotation_are_numpys_and_scipys() -> None:
    images = np.random.default_rng(SEED).random((3, 2, 9, 12), dtype=np.float32)
    moved = image_transform(down=2, across=-1)(images)
    np.testing.assert_array_equal(moved[..., 2:, :-1], images[..., :-2, 1:])
    np.testing.assert_array_equal(moved[..., 0, :-1], images[..., 0, 1:])  # the edge, repeated
    np.testing.assert_array_equal(moved[..., 2:, -1], images[..., :-2, -1])
    np.testing.assert_array_equal(image_transform(mirror=True)(images), images[..., ::-1])
    expected = ndimage.rotate(
        images[..., ::-1], 7.5, axes=(-2, -1), reshape=False, order=1, mode="nearest"
    )
    turned = image_transform(mirror=True, angle=7.5)(images)
    np.testing.assert_allclose(turned, expected, atol=1e-5)
    square = images[..., :9]
    quarter = image_transform(angle=90)(square)
    np.testing.assert_allclose(quarter, np.rot90(square, axes=(-2, -1)), atol=1e-5)


def test_deviations_are_numpys_for_inputs_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(SEED).normal(1e3, 1, (500, 2, 3)).astype(np.float32)
    lazy: Any = LazyInputs(lambda rows: values[rows], np.arange(500), (2, 3))
    monkeypatch.setattr("fl_audit.records._BLOCK_BYTES", 1)
    records = Records(np.arange(500), lazy, np.zeros(500, np.int64))
    np.testing.assert_allclose(
        feature_deviations(records), values.std(axis=0, dtype=np.float64), rtol=1e-6
    )


def test_blocks_of_queries_do_not_change_scores(
    memorised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = memorised.run(ATTACK)
    monkeypatch.setattr(augmentation_consistency, "_QUERY_BYTES", 10_000)
    _, parts = memorised.run(ATTACK)
    np.testing.assert_array_equal(parts.scores, whole.scores)


def test_null_candidates_look_alike(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK, part="null")
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


def test_members_stand_out(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_labels_are_all_that_it_uses(memorised: Any) -> None:
    predict: Callable[[Points], NDArray[np.floating]] = memorised.candidates.target.predict

    def labels_only(inputs: Points) -> NDArray[np.floating]:
        one_hot: NDArray[np.floating] = np.eye(10)[predict(inputs).argmax(axis=1)]
        return one_hot

    lab = replace(memorised.candidates, target=Target(labels_only))
    _, expected = memorised.run(ATTACK)
    _, output = replace(memorised, candidates=lab).run(ATTACK)
    np.testing.assert_array_equal(output.scores, expected.scores)


def test_bad_input_is_refused(memorised: Any) -> None:
    with pytest.raises(InputError, match=r"kind = 'image': needs images.*Use kind = 'noise'"):
        memorised.run(ATTACK, kind="image")
    few = np.zeros((3, 4), dtype=np.float32)
    with pytest.raises(InputError, match="auxiliary records = 3"):
        run(few, few, lambda x: x[:, 0] > 0)
    with pytest.raises(InputError, match=r"must have shape \(copies, 2\)"):
        augmentation_consistency_scores(np.zeros((0, 2), np.int64), np.zeros(2, np.int64))

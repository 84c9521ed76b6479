"""Thresholds and probabilities, set without the truth."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.decisions import Calibration

SEED = 20_260_101


def shadow(num: int = 4000, gap: float = 1.0) -> Calibration:
    rng = np.random.default_rng(SEED)
    member = np.arange(num) < num // 2
    return Calibration(rng.normal(size=num) + gap * member, member)


def test_the_threshold_admits_its_share_of_non_members() -> None:
    task = Calibration(np.arange(200.0), np.arange(200) % 2 == 1)
    assert (task.scores[~task.is_member] > task.threshold(0.05)).sum() == 5
    assert (task.scores[~task.is_member] > task.threshold(0.001)).sum() == 0


def test_probabilities_are_those_of_the_two_densities() -> None:
    """Two normals one apart: log-odds at s are s - 1/2. Binned, so within 0.1 where data are."""
    task = shadow(40_000)
    scores = np.linspace(-1.5, 2.5, 9)
    expected = 1 / (1 + np.exp(0.5 - scores))
    found = task.probabilities(scores)
    assert np.abs(found - expected).max() < 0.1
    assert (np.diff(found) >= 0).all()
    assert task.probabilities(np.array([-1e9, 1e9])).min() > 0
    assert task.probabilities(np.array([1e9])).max() < 1


def test_no_signal_means_probabilities_near_the_prior() -> None:
    found = shadow(gap=0.0).probabilities(np.linspace(-3, 3, 50))
    assert np.abs(found - 0.5).max() < 0.2


def test_balanced_decisions_cut_where_the_shadow_is_told_apart_best() -> None:
    task = Calibration(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True]))
    assert task.called_balanced(np.array([1.4, 1.6])).tolist() == [False, True]
    reversed_sides = Calibration(-task.scores, task.is_member)
    assert reversed_sides.called_balanced(np.array([-5.0])).tolist() in ([True], [False])


@pytest.mark.parametrize(("shift", "scale"), [(10.0, 1.0), (0.0, 7.0)])
def test_a_target_on_another_scale_is_put_on_the_shadows(shift: float, scale: float) -> None:
    task = shadow()
    rng = np.random.default_rng(SEED + 1)
    null = shift + scale * rng.normal(size=2000)
    moved = Calibration(task.scores, task.is_member, reference=null)
    plain = np.linspace(-1, 2, 7)
    assert (
        np.abs(moved.probabilities(shift + scale * plain) - task.probabilities(plain)).max() < 0.12
    )
    assert (null > moved.threshold(0.01)).mean() == pytest.approx(0.01)


def test_alignment_keeps_the_order_beyond_the_outermost_quantiles() -> None:
    task = Calibration(shadow().scores, shadow().is_member, reference=np.linspace(0, 1, 60))
    scores = np.array([-9.0, -5.0, 0.5, 5.0, 9.0])
    aligned = task._aligned(scores)
    assert (np.diff(aligned) > 0).all()


def test_right_or_wrong_means_the_same_in_every_model() -> None:
    """Mapping quantiles of two values would call all records members where a share differs."""
    rng = np.random.default_rng(SEED)
    member = np.arange(400) < 200
    score = (rng.random(400) < np.where(member, 0.95, 0.55)).astype(float)
    task = Calibration(score, member, reference=(rng.random(80) < 0.45).astype(float))
    assert task.called_balanced(np.array([0.0, 1.0])).tolist() == [False, True]

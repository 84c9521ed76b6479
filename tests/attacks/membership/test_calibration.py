"""Difficulty calibration: the target's signal minus the mean of out-models'; and on targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attacks.membership.calibration import ATTACK, calibration_scores
from attacks.membership.signals import logit_confidence
from fl_audit.errors import InputError
from fl_audit.stats import auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40


def test_score_is_the_difference_of_mean_losses() -> None:
    p_target, p_shadow = np.array([0.9, 0.5]), np.array([[0.5, 0.5], [0.2, 0.8], [0.1, 0.1]])
    in_shadow = np.array([[False, True], [True, False], [False, False]])
    labels = np.array([0, 0])
    target = np.log(np.stack([p_target, 1 - p_target], axis=-1))
    shadow = np.log(np.stack([p_shadow, 1 - p_shadow], axis=-1))
    expected = np.log([0.9 / np.sqrt(0.5 * 0.1), 0.5 / np.sqrt(0.8 * 0.1)])
    found = calibration_scores(target, shadow, in_shadow, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_signal_may_be_another() -> None:
    rng = np.random.default_rng(SEED)
    target, shadow, labels = rng.normal(size=(6, 3)), rng.normal(size=(2, 6, 3)), np.arange(6) % 3
    nowhere = np.zeros((2, 6), dtype=np.bool_)
    found = calibration_scores(target, shadow, nowhere, labels, signal=logit_confidence)
    expected = logit_confidence(target, labels) - logit_confidence(shadow, labels).mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("signal", ["loss", "logit"])
def test_null_candidates_look_alike(memorised: Any, mode: str, signal: str) -> None:
    is_member, output = memorised.run(ATTACK, part="null", mode=mode, signal=signal)
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("signal", ["loss", "logit"])
def test_members_stand_out(memorised: Any, mode: str, signal: str) -> None:
    is_member, output = memorised.run(ATTACK, mode=mode, signal=signal)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_one_online_model_leaves_half_of_the_records_without_a_reference(memorised: Any) -> None:
    with pytest.raises(InputError, match=r"at least 2.*population"):
        memorised.run(ATTACK, num_shadow_models=1)
    memorised.run(ATTACK, num_shadow_models=1, mode="offline")


def test_bad_input_is_refused() -> None:
    target, shadow, labels = np.zeros((3, 2)), np.zeros((2, 3, 2)), np.zeros(3, dtype=np.int64)
    in_shadow = np.zeros((2, 3), dtype=np.bool_)
    with pytest.raises(InputError, match="in_shadow"):
        calibration_scores(target, shadow, in_shadow[:1], labels)
    in_shadow[:, 1] = True
    with pytest.raises(InputError, match="out-models of record 1 = 0"):
        calibration_scores(target, shadow, in_shadow, labels)
    shadow[1, 2, 0] = np.nan
    with pytest.raises(InputError, match="logits of record 2"):
        calibration_scores(target, shadow, in_shadow, labels)

"""BASE: a peer's scores to 1e-9, and the formula by way of probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from attacks.membership.base import ATTACK, base_scores
from fl_audit.errors import InputError
from fl_audit.stats import auc_ci

CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40
# One synthetic problem and the scores that LeakPro (2026-06) gives on it, at temperature 2
# (shared/oracles/membership.npz).
ORACLE = Path(__file__).with_name("oracle.npz")
Mode = Literal["online", "offline"]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_scores_agree_with_a_peer(mode: Mode) -> None:
    arrays = np.load(ORACLE, allow_pickle=False)
    names = ("target_logits", "shadow_logits", "in_shadow", "labels")
    found = base_scores(*(arrays[n] for n in names), mode=mode)
    expected = arrays[f"base_{mode}"]
    assert np.abs(found - expected).max() <= 1e-9
    assert expected.std() > 0.1  # numbers that agree by being all alike would prove nothing


def test_scores_are_log_ratios_to_the_mean_probability() -> None:
    target = np.log([[0.9, 0.1], [0.5, 0.5]])
    shadow = np.log([[[0.6, 0.4], [0.2, 0.8]], [[0.2, 0.8], [0.4, 0.6]]])
    in_shadow = np.array([[True, False], [False, False]])
    labels = np.zeros(2, dtype=np.int64)
    online = base_scores(target, shadow, in_shadow, labels, temperature=1.0)
    np.testing.assert_allclose(online, np.log([0.9 / 0.4, 0.5 / 0.3]), rtol=1e-14)
    offline = base_scores(
        target, shadow, in_shadow, labels, mode="offline", temperature=1.0, offline_scale=0.5
    )
    expected = np.log([0.9, 0.5]) - 0.5 * np.log([0.2, 0.3])
    np.testing.assert_allclose(offline, expected, rtol=1e-14)


def test_an_odd_number_of_out_models_is_fine() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 4, 2))
    in_shadow = np.zeros((3, 4), dtype=np.bool_)
    scores = base_scores(logits[0], logits, in_shadow, np.zeros(4, dtype=np.int64), mode="offline")
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_null_candidates_look_alike(memorised: Any, mode: str) -> None:
    is_member, output = memorised.run(ATTACK, part="null", mode=mode)
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_members_stand_out(memorised: Any, mode: str) -> None:
    is_member, output = memorised.run(ATTACK, mode=mode)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_bad_input_is_refused() -> None:
    target, shadow, labels = np.zeros((3, 2)), np.zeros((2, 3, 2)), np.zeros(3, dtype=np.int64)
    in_shadow = np.zeros((2, 3), dtype=np.bool_)
    with pytest.raises(InputError, match="in_shadow"):
        base_scores(target, shadow, in_shadow[:, :2], labels)
    in_shadow[:, 1] = True
    with pytest.raises(InputError, match="out-models of record 1 = 0"):
        base_scores(target, shadow, in_shadow, labels, mode="offline")
    target[2, 0] = np.nan
    with pytest.raises(InputError, match="logits of record 2"):
        base_scores(target, shadow, in_shadow, labels)

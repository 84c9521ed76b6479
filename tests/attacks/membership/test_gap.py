"""Gap: right answers are members; its balanced accuracy is half of one plus the accuracy gap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attacks.membership.gap import ATTACK, gap_scores
from attacks.shadows.lab import Lab
from attacks.shadows.target import Target, Task
from attacks.shadows.workshop import Workshop
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.stats import auc, auc_ci
from fl_audit.threat_model import Knowledge, Observation

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40


def test_right_is_one_and_wrong_is_zero() -> None:
    scores = gap_scores(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 0]))
    np.testing.assert_array_equal(scores, [1.0, 0.0, 1.0, 0.0])
    assert scores.dtype == np.float64


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="must have the shape of the labels"):
        gap_scores(np.zeros(3, dtype=np.int64), np.zeros(1, dtype=np.int64))


def test_it_is_granted_labels_only() -> None:
    assert ATTACK.requires == Observation.LABELS_ONLY
    assert ATTACK.knows == Knowledge.LABELS


def test_auc_is_half_of_one_plus_the_accuracy_gap(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK)
    lab = memorised.candidates
    right = lab.logits().argmax(axis=1) == lab.candidates.labels
    gap = right[is_member].mean() - right[~is_member].mean()
    assert auc(is_member, output.scores) == pytest.approx(0.5 + gap / 2, abs=1e-12)


def test_null_candidates_look_alike(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK, part="null")
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


def test_members_stand_out(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_regression_has_no_classes() -> None:
    zeros = np.zeros(4, dtype=np.float32)
    pool = Records(np.arange(4), np.zeros((4, 1), np.float32), zeros.astype(np.int64), zeros)
    workshop = Workshop(pool, 4, Task("regression", 2), trainer=None, train_size=2, seed=0)
    lab = Lab(workshop, Target(lambda x: x), np.arange(4), np.arange(0))
    rng = np.random.default_rng(SEED)
    given = AttackInput(view=None, settings=None, rng=rng, lab=lab)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs classes"):
        ATTACK.run(given)

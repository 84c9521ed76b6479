"""Entropy: scipy's, negated, and members of a memorising target stand out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from attacks.membership.entropy import ATTACK, entropy_scores
from attacks.shadows.lab import Lab
from attacks.shadows.target import Target, Task, module_target
from attacks.shadows.training import Job, TrainingConfig, train_one
from attacks.shadows.workshop import Workshop
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.stats import auc_ci
from fl_audit.threat_model import NOTHING_KNOWN

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40
THOROUGH = TrainingConfig(epochs=60, batch_size=32, learning_rate=1e-2)  # random labels by heart


def test_score_is_scipys_entropy_negated() -> None:
    logits = np.random.default_rng(SEED).normal(0, 3, (50, 10))
    expected = -stats.entropy(softmax(logits, axis=1), axis=1)
    np.testing.assert_allclose(entropy_scores(logits), expected, rtol=1e-10)


def test_it_spans_from_a_uniform_answer_to_a_sure_one() -> None:
    logits = np.array([[0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 900.0, 0.0, 0.0]])
    scores = entropy_scores(logits)
    np.testing.assert_allclose(scores[[0, 2]], [-np.log(4), 0], atol=1e-15)
    assert scores[0] < scores[1] < scores[2]


def test_the_attack_needs_no_labels() -> None:
    assert ATTACK.knows == NOTHING_KNOWN


def test_null_candidates_look_alike(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK, part="null")
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


def test_members_stand_out_where_all_of_them_were_learnt(memorised: Any) -> None:
    """Without labels only a target that is sure of its members and of nothing else gives away."""
    lab = memorised.candidates
    job = Job(lab.candidates.take(np.flatnonzero(memorised.is_member)), 7)
    target = module_target(train_one(lab.workshop.build, job, THOROUGH))
    is_member, output = replace(memorised, candidates=replace(lab, target=target)).run(ATTACK)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_nan_logits_name_the_record() -> None:
    logits = np.zeros((3, 2))
    logits[1, 0] = np.nan
    with pytest.raises(InputError, match="record 1"):
        entropy_scores(logits)


def test_regression_is_refused() -> None:
    zeros = np.zeros(4, dtype=np.float32)
    pool = Records(np.arange(4), np.zeros((4, 1), np.float32), zeros.astype(np.int64), zeros)
    workshop = Workshop(pool, 4, Task("regression", 2), trainer=None, train_size=2, seed=0)
    lab = Lab(workshop, Target(lambda x: x), np.arange(4), np.arange(0))
    rng = np.random.default_rng(SEED)
    given = AttackInput(view=None, settings=None, rng=rng, lab=lab)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not say how sure it is"):
        ATTACK.run(given)

"""Modified entropy: equal to the definition, and low only for a sure and right answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from attacks.membership.modified_entropy import ATTACK, modified_entropy_scores
from fl_audit.errors import InputError
from fl_audit.stats import auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40


def test_score_is_the_definition_term_by_term() -> None:
    rng = np.random.default_rng(SEED)
    logits, labels = rng.normal(0, 2, (30, 5)), rng.integers(5, size=30)
    expected = np.zeros(30)
    for row, (p, label) in enumerate(zip(softmax(logits, axis=1), labels, strict=True)):
        for i in range(5):
            wrong = p[i] * np.log(1 - p[i])
            expected[row] += (1 - p[i]) * np.log(p[i]) if i == label else wrong
    np.testing.assert_allclose(modified_entropy_scores(logits, labels), expected, rtol=1e-10)


def test_sure_and_right_scores_highest_sure_and_wrong_lowest() -> None:
    logits = np.array([[20.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 20.0, 0.0]])
    scores = modified_entropy_scores(logits, np.zeros(4, dtype=np.int64))
    assert (np.diff(scores) < 0).all()
    assert scores[0] > -1e-15


def test_null_candidates_look_alike(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK, part="null")
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


def test_members_stand_out(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_bad_input_names_the_record() -> None:
    logits = np.zeros((3, 2))
    with pytest.raises(InputError, match="label of record 2 = 7"):
        modified_entropy_scores(logits, np.array([0, 1, 7]))
    logits[1, 0] = np.inf
    with pytest.raises(InputError, match="logits of record 1"):
        modified_entropy_scores(logits, np.zeros(3, dtype=np.int64))

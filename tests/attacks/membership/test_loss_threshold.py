"""Loss threshold: equal to torch's cross-entropy, negated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks.membership.loss_threshold import loss_scores
from fl_audit.errors import InputError

SEED = 20_261_123


def test_scores_are_negative_cross_entropy() -> None:
    rng = np.random.default_rng(SEED)
    logits, labels = rng.normal(0, 30, (50, 10)), rng.integers(10, size=50)
    expected = -torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), reduction="none"
    ).numpy()
    np.testing.assert_allclose(loss_scores(logits, labels), expected, rtol=1e-12, atol=1e-12)


def test_a_confident_right_answer_scores_highest() -> None:
    logits = np.array([[9.0, 0.0], [1.0, 0.0], [0.0, 9.0]])
    scores = loss_scores(logits, np.zeros(3, dtype=np.int64))
    assert scores[0] > scores[1] > scores[2]


def test_nan_logits_name_the_record() -> None:
    logits = np.zeros((3, 2))
    logits[1, 0] = np.nan
    with pytest.raises(InputError, match="record 1"):
        loss_scores(logits, np.zeros(3, dtype=np.int64))


def test_label_outside_the_classes_names_the_record() -> None:
    with pytest.raises(InputError, match="label of record 2 = 7"):
        loss_scores(np.zeros((3, 2)), np.array([0, 1, 7]))

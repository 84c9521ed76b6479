"""Gradient difference: the identity behind it, and the learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.federated.gradient_difference import gradient_difference_scores
from fl_audit.errors import InputError, ObservationError
from fl_audit.local_training import LocalTraining
from fl_audit.threat_model import PRESETS, Knowledge, ThreatModel

SEED = 20_261_125


def test_it_is_what_the_update_loses_without_the_gradient(hand: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    data, model = hand.records(6, rng=rng), hand.weights(rng=rng)
    reply = hand.step(model, hand.gradient(model, data, [0, 1, 2]))
    view = hand.view(tmp_path / "trace", [(model, {0: reply}, None)])
    scores = gradient_difference_scores(view, data)

    def flat(arrays: Any) -> Any:
        return np.concatenate([np.asarray(arrays[n], np.float64).ravel() for n in sorted(arrays)])

    whole = -flat(view.client_update(1, 0)) / hand.rate
    for row in range(6):
        gradient = flat(hand.gradient(model, data, [row]))
        expected = np.sum(whole**2) - np.sum((whole - gradient) ** 2)
        assert scores[row] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_learning_rate_may_be_given(hand: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    data, model = hand.records(6, rng=rng), hand.weights(rng=rng)
    reply = hand.step(model, hand.gradient(model, data, [0]))
    ignorant = ThreatModel("server", sees=PRESETS["curious-server"].sees, knows=Knowledge.LABELS)
    view = hand.view(tmp_path / "trace", [(model, {0: reply}, None)], ignorant)
    known = hand.view(tmp_path / "known", [(model, {0: reply}, None)])
    np.testing.assert_array_equal(
        gradient_difference_scores(view, data, learning_rate=hand.rate),
        gradient_difference_scores(known, data),
    )
    with pytest.raises(ObservationError, match="local-training"):
        gradient_difference_scores(view, data)
    with pytest.raises(InputError, match="must be positive"):
        gradient_difference_scores(view, data, learning_rate=0.0)


def test_rounds_that_trained_nothing_are_left_out(hand: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    data, model = hand.records(6, rng=rng), hand.weights(rng=rng)
    reply = hand.step(model, hand.gradient(model, data, [0]))
    ended = LocalTraining(algorithm="fedsgd", schedule="cosine", decay_rounds=1)
    rounds = [(model, {0: reply}, None), (model, {0: reply}, None)]
    view = hand.view(tmp_path / "trace", rounds, training=ended)
    only = gradient_difference_scores(view, data, rounds=[1])
    np.testing.assert_array_equal(gradient_difference_scores(view, data), only)
    with pytest.raises(InputError, match="no signal"):
        gradient_difference_scores(view, data, rounds=[2])

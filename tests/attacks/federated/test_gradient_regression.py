"""Gradient regression: closed forms, sketch, and where cosines fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attacks.federated import gradient_regression
from attacks.federated.gradient_regression import (
    gradient_regression_scores,
    ridge_coefficients,
)
from fl_audit.errors import InputError, ObservationError
from fl_audit.threat_model import PRESETS

SEED = 20_261_125


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def one_step(hand: Any, folder: Path, members: list[int], n: int = 12) -> tuple[Any, Any]:
    draw = rng()
    data, model = hand.records(n, rng=draw), hand.weights(rng=draw)
    reply = hand.step(model, hand.gradient(model, data, members))
    return hand.view(folder, [(model, {0: reply}, reply)]), data


def test_one_step_gives_its_records_and_no_other(hand: Any, tmp_path: Path) -> None:
    """The update is a sum of 4 of 12 gradients: coefficients equal for those, near 0 for others."""
    view, data = one_step(hand, tmp_path / "trace", [1, 4, 5, 9])
    scores = gradient_regression_scores(view, data, rng=rng(), at="start", ridge=1e-5)
    members = np.isin(np.arange(12), [1, 4, 5, 9])
    assert scores[members].min() > 5 * np.abs(scores[~members]).max()
    np.testing.assert_allclose(scores[members], scores[members].mean(), rtol=0.15)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5)])
def test_it_solves_the_ridge_problem_either_way(shape: tuple[int, int]) -> None:
    draw = rng()
    g, u = draw.normal(size=shape), draw.normal(size=shape[1])
    found = ridge_coefficients(torch.from_numpy(g).float(), torch.from_numpy(u).float(), ridge=0.1)
    penalty = 0.1 * np.square(g).sum(axis=1).mean()
    expected = np.linalg.solve(g @ g.T + penalty * np.eye(len(g)), g @ u)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_sketch_keeps_the_answer(
    hand: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, data = one_step(hand, tmp_path / "trace", [0, 2, 3])
    whole = gradient_regression_scores(view, data, rng=rng())
    monkeypatch.setattr(gradient_regression, "_MOST_DIMENSIONS", 150)  # of 203
    sketched = gradient_regression_scores(view, data, rng=rng())
    assert not np.array_equal(whole, sketched)
    assert set(np.argsort(sketched)[-3:]) == set(np.argsort(whole)[-3:]) == {0, 2, 3}
    again = gradient_regression_scores(view, data, rng=rng())
    assert again.tobytes() == sketched.tobytes()


def test_from_a_clients_seat(hand: Any, tmp_path: Path) -> None:
    draw = rng()
    data, model = hand.records(12, rng=draw), hand.weights(rng=draw)
    replies = {i: hand.step(model, hand.gradient(model, data, [3 * i])) for i in range(3)}
    mean = {n: np.mean([r[n] for r in replies.values()], axis=0) for n in model}
    rounds = [(model, replies, {n: a.astype(np.float32) for n, a in mean.items()})]
    seat = hand.view(tmp_path / "trace", rounds, PRESETS["curious-client"])
    scores = gradient_regression_scores(seat, data, rng=rng(), source="sum")
    assert set(np.argsort(scores)[-3:]) == {0, 3, 6}
    with pytest.raises(ObservationError, match="client-updates"):
        gradient_regression_scores(seat, data, rng=rng())


def test_zero_updates_and_zero_gradients_are_no_signal(hand: Any, tmp_path: Path) -> None:
    draw = rng()
    data, model = hand.records(4, rng=draw), hand.weights(rng=draw)
    view = hand.view(tmp_path / "trace", [(model, {0: model}, model)])
    with pytest.raises(InputError, match="no signal"):
        gradient_regression_scores(view, data, rng=rng())
    with pytest.raises(InputError, match="no candidate has a gradient"):
        ridge_coefficients(torch.zeros(3, 4), torch.ones(4), 0.1)

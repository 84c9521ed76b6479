"""Loss series and gradient norms: values, means over rounds, and the client's seat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.federated.gradient_norm import gradient_norm_scores
from attacks.federated.loss_series import loss_series_scores
from attacks.federated.rounds import record_losses
from fl_audit.errors import InputError, ObservationError
from fl_audit.threat_model import PRESETS

SEED = 20_261_125


def two_rounds(hand: Any) -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(SEED)
    data = hand.records(5, rng=rng)
    models = [hand.weights(rng=rng) for _ in range(5)]
    rounds = [
        (models[0], {0: models[1], 1: models[2]}, models[3]),
        (models[3], {1: models[4]}, models[4]),
    ]
    return data, rounds


def test_loss_series_is_the_mean_over_a_clients_rounds(hand: Any, tmp_path: Path) -> None:
    data, rounds = two_rounds(hand)
    view = hand.view(tmp_path / "trace", rounds)
    module = view.architecture()
    first = record_losses(module, rounds[0][1][1], data)
    second = record_losses(module, rounds[1][1][1], data)
    asked = np.full(5, 1)
    np.testing.assert_allclose(loss_series_scores(view, data, asked=asked), -(first + second) / 2)
    np.testing.assert_allclose(loss_series_scores(view, data, asked=asked, rounds=[2]), -second)


def test_gradient_norm_is_taken_at_what_came_back(hand: Any, tmp_path: Path) -> None:
    data, rounds = two_rounds(hand)
    view = hand.view(tmp_path / "trace", rounds)
    scores = gradient_norm_scores(view, data, rounds=[2])
    for row in range(5):
        gradient = hand.gradient(rounds[1][1][1], data, [row])
        norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradient.values()))
        assert scores[row] == pytest.approx(-norm, rel=1e-4)


def test_from_a_clients_seat_they_ask_the_global_models(hand: Any, tmp_path: Path) -> None:
    data, rounds = two_rounds(hand)
    seat = hand.view(tmp_path / "trace", rounds, PRESETS["curious-client"])
    module = seat.architecture()
    expected = -(
        record_losses(module, rounds[0][2], data) + record_losses(module, rounds[1][2], data)
    )
    np.testing.assert_allclose(loss_series_scores(seat, data, source="sum"), expected / 2)
    gradient_norm_scores(seat, data, source="sum")
    for scores in (loss_series_scores, gradient_norm_scores):
        with pytest.raises(ObservationError, match="client-updates"):
            scores(seat, data)


def test_nobody_answered(hand: Any, tmp_path: Path) -> None:
    data, rounds = two_rounds(hand)
    view = hand.view(tmp_path / "trace", [(rounds[0][0], {0: None}, None)])
    for scores in (loss_series_scores, gradient_norm_scores):
        for source in ("clients", "sum"):
            with pytest.raises(InputError, match="no signal"):
                scores(view, data, source=source)  # type: ignore[arg-type]

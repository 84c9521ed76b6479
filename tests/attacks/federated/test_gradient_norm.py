"""Gradient norms: where they are taken, and from a client's seat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.federated.gradient_norm import gradient_norm_scores
from fl_audit.errors import InputError, ObservationError
from fl_audit.threat_model import PRESETS


def test_gradient_norm_is_taken_at_what_came_back(hand: Any, tmp_path: Path) -> None:
    data, rounds = hand.two_rounds()
    view = hand.view(tmp_path / "trace", rounds)
    scores = gradient_norm_scores(view, data, rounds=[2])
    for row in range(5):
        gradient = hand.gradient(rounds[1][1][1], data, [row])
        norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradient.values()))
        assert scores[row] == pytest.approx(-norm, rel=1e-4)


def test_from_a_clients_seat_it_is_taken_at_the_global_models(hand: Any, tmp_path: Path) -> None:
    data, rounds = hand.two_rounds()
    seat = hand.view(tmp_path / "trace", rounds, PRESETS["curious-client"])
    server = hand.view(tmp_path / "again", [(rounds[0][0], {0: rounds[0][2]}, None)])
    np.testing.assert_allclose(
        gradient_norm_scores(seat, data, source="sum", rounds=[1]),
        gradient_norm_scores(server, data),
    )
    with pytest.raises(ObservationError, match="client-updates"):
        gradient_norm_scores(seat, data)


def test_nobody_answered(hand: Any, tmp_path: Path) -> None:
    data, rounds = hand.two_rounds()
    view = hand.view(tmp_path / "trace", [(rounds[0][0], {0: None}, None)])
    with pytest.raises(InputError, match="no signal"):
        gradient_norm_scores(view, data)
    with pytest.raises(InputError, match="no signal"):
        gradient_norm_scores(view, data, source="sum")

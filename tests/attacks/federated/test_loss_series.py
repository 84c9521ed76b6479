"""Loss series: values, means over rounds, and the client's seat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.federated.loss_series import loss_series_scores
from attacks.federated.rounds import record_losses
from fl_audit.errors import InputError, ObservationError
from fl_audit.threat_model import PRESETS


def test_loss_series_is_the_mean_over_a_clients_rounds(hand: Any, tmp_path: Path) -> None:
    data, rounds = hand.two_rounds()
    view = hand.view(tmp_path / "trace", rounds)
    module = view.architecture()
    first = record_losses(module, rounds[0][1][1], data)
    second = record_losses(module, rounds[1][1][1], data)
    asked = np.full(5, 1)
    np.testing.assert_allclose(loss_series_scores(view, data, asked=asked), -(first + second) / 2)
    np.testing.assert_allclose(loss_series_scores(view, data, asked=asked, rounds=[2]), -second)


def test_from_a_clients_seat_it_asks_the_global_models(hand: Any, tmp_path: Path) -> None:
    data, rounds = hand.two_rounds()
    seat = hand.view(tmp_path / "trace", rounds, PRESETS["curious-client"])
    module = seat.architecture()
    first, second = (record_losses(module, r[2], data) for r in rounds)
    found = loss_series_scores(seat, data, source="sum")
    np.testing.assert_allclose(found, -(first + second) / 2)
    with pytest.raises(ObservationError, match="client-updates"):
        loss_series_scores(seat, data)


def test_nobody_answered(hand: Any, tmp_path: Path) -> None:
    data, rounds = hand.two_rounds()
    view = hand.view(tmp_path / "trace", [(rounds[0][0], {0: None}, None)])
    with pytest.raises(InputError, match="no signal"):
        loss_series_scores(view, data)
    with pytest.raises(InputError, match="no signal"):
        loss_series_scores(view, data, source="sum")

"""What a malicious server plants, turn by turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attacks.federated.server_behaviours import ServerMeans, ServerTurn
from attacks.reconstruction.fishing import read_cut
from attacks.reconstruction.server_behaviours import PLANTINGS, Fishing, Imprint, QuantileTraps
from fl_audit.errors import InputError
from fl_audit.records import Records
from simulations.models import mlp
from simulations.run import run_scenario
from simulations.scenario import parse_scenario

SEED = 20_261_125


def _means(auxiliary: int = 60) -> ServerMeans:
    rng = np.random.default_rng(SEED)
    inputs = rng.random((auxiliary, 30)).astype(np.float32)
    own = Records(np.arange(auxiliary), inputs, np.arange(auxiliary) % 3)
    return ServerMeans(
        model=lambda: mlp(input_shape=[30], num_classes=3, hidden=[16]),
        targets=own.take([]),
        asked=None,
        auxiliary=own,
    )


def _turn(means: ServerMeans, number: int) -> ServerTurn:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = means.model().state_dict()
    return ServerTurn(number, 0, {name: v.numpy() for name, v in state.items()}, None, 0)


@pytest.mark.parametrize("name", sorted(PLANTINGS))
def test_same_turn_same_bytes_and_all_clients_get_one_model(name: str) -> None:
    means, behaviour = _means(), PLANTINGS[name]()
    first, again = (behaviour.send(_turn(means, 1), means) for _ in range(2))
    assert all((first[n] == again[n]).all() and first[n].dtype == again[n].dtype for n in first)
    assert behaviour.key(_turn(means, 1), means) == behaviour.key(_turn(means, 1), means)
    later = behaviour.send(_turn(means, 2), means)
    assert any((first[n] != later[n]).any() for n in first)


def test_classes_are_fished_in_turn_unless_one_is_named() -> None:
    means = _means()
    for behaviour, labels in ((Fishing(), [0, 1, 2, 0]), (Fishing(label=1), [1, 1, 1, 1])):
        cuts = [read_cut(behaviour.send(_turn(means, n), means)) for n in (1, 2, 3, 4)]
        assert [None if cut is None else cut.label for cut in cuts] == labels


def test_settings_reach_what_is_planted() -> None:
    means = _means()
    turn = _turn(means, 1)
    few = Imprint(rows=6).send(turn, means)
    assert (few["1.weight"] != turn.model["1.weight"]).any(axis=1).sum() == 6
    loud = Imprint(gain=4.0).send(turn, means)
    assert float(np.abs(loud["3.weight"]).max()) == 4.0
    published = QuantileTraps(batch=4, spread=False).send(turn, means)
    inputs = np.asarray(means.auxiliary.inputs, dtype=np.float64)
    weight, bias = (np.asarray(published[n], np.float64) for n in ("1.weight", "1.bias"))
    fired = inputs @ weight.T + bias > 0
    assert fired.mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("name", sorted(PLANTINGS))
def test_records_of_its_own_are_needed(name: str) -> None:
    with pytest.raises(InputError, match="auxiliary"):
        PLANTINGS[name]().check(_means(0))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": {"name": "convnet"}}, "first layer is not a dense layer"),
        ({"model": {"name": "mlp", "hidden": [8]}, "adversary": {"rows": 9}}, "Plant fewer rows"),
        ({"game": {"auxiliary": 0}}, "game. auxiliary = 1000"),
        ({"threat_model": {"preset": "malicious-server", "knows": []}}, "needs auxiliary-data"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_round(
    change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    tables = {
        "federation": {"clients": 2, "rounds": 1},
        "threat_model": {"preset": "malicious-server"},
        **change,
        "adversary": {"name": "imprint", **change.get("adversary", {})},
    }
    with pytest.raises(InputError, match=match):
        run_scenario(parse_scenario(tables), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()

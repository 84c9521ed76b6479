"""Strategies by name, and what they decide about local training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl_audit.errors import InputError
from simulations import client_app
from simulations.defences import local_trainings
from simulations.run import run_scenario
from simulations.scenario import dump_scenario, load_scenario, parse_scenario

PROX: dict[str, Any] = {"name": "FedProx", "proximal_mu": 0.5}


def test_the_recorded_proximal_term_is_the_one_that_clients_train_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Flower's strategy sends it, for every client, and in run.json."""
    used, sent = set(), set()
    real_train, real_reply = client_app.train, client_app._reply

    def train(model: Any, records: Any, training: Any, **rest: Any) -> tuple[float, int]:
        used.add(training.proximal_mu)
        return real_train(model, records, training, **rest)

    def reply(message: Any, content: Any) -> Any:
        sent.add(message.content.config_records["config"]["proximal-mu"])
        return real_reply(message, content)

    monkeypatch.setattr(client_app, "train", train)
    monkeypatch.setattr(client_app, "_reply", reply)
    tables: dict[str, Any] = {
        "federation": {"clients": 2, "rounds": 1},
        "data": {"examples_per_client": 20},
        "strategy": PROX,
        "training": {"clients": {"1": {"learning_rate": 0.2}}},
    }
    local = run_scenario(parse_scenario(tables), out=tmp_path / "run").run.local_training
    assert local is not None
    assert {local.of(0).proximal_mu, local.of(1).proximal_mu} == used == sent == {0.5}
    assert local.of(1).learning_rate == 0.2


@pytest.mark.parametrize(
    ("training", "strategy", "message"),
    [
        ({"proximal_mu": 0.1}, PROX, r"training.proximal_mu = 0.1: strategy.proximal_mu = 0.5"),
        ({"proximal_mu": 0.1}, {"name": "FedProx"}, r"= 0.1: strategy.proximal_mu = 0.0"),
        (
            {"clients": {"1": {"proximal_mu": 0.1}}},
            PROX,
            r"training.clients.1.proximal_mu = 0.1: strategy.proximal_mu = 0.5",
        ),
        ({"clients": {"1": {"proximal_mu": 0}}}, PROX, r"training.clients.1.proximal_mu = 0: "),
    ],
)
def test_a_proximal_term_that_fedprox_would_overrule_is_refused(
    training: dict[str, Any], strategy: dict[str, Any], message: str, tmp_path: Path
) -> None:
    scenario = parse_scenario({"training": training, "strategy": strategy})
    with pytest.raises(InputError, match=message):
        run_scenario(scenario, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_impossible_proximal_term_of_the_strategy_is_refused() -> None:
    for mu in (-1, "strong"):
        scenario = parse_scenario({"strategy": {"name": "FedProx", "proximal_mu": mu}})
        with pytest.raises(InputError, match=r"strategy\.proximal_mu"):
            local_trainings(scenario)


def test_the_same_term_in_both_places_and_the_saved_scenario_are_accepted(tmp_path: Path) -> None:
    tables: dict[str, Any] = {"training": {"proximal_mu": 0.5}, "strategy": PROX}
    for given in (tables, {"strategy": PROX}):
        (tmp_path / "s.toml").write_text(dump_scenario(parse_scenario(given)))
        saved = load_scenario(tmp_path / "s.toml")
        assert local_trainings(saved) == local_trainings(parse_scenario(given))
        assert local_trainings(saved).default.proximal_mu == 0.5


def test_other_strategies_leave_the_term_to_the_clients() -> None:
    scenario = parse_scenario({"training": {"clients": {"1": {"proximal_mu": 0.1}}}})
    assert local_trainings(scenario) == scenario.training.all()
    assert local_trainings(scenario).of(1).proximal_mu == 0.1

"""The honest client: trains on its own records and replies as Flower's strategies expect.

A scenario arrives in the run configuration, so the same app runs in every engine. Whatever a
client draws depends on (scenario seed, round, partition id) only, never on which process runs it.
"""

from __future__ import annotations

import functools
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from attacks.devices import choose_device
from fl_audit.factories import ModelSpec
from fl_audit.local_training import LocalTraining
from simulations.arrays import load_record, to_record
from simulations.defences import client_mods
from simulations.faults import DropOutError, share_of_work
from simulations.models import model_spec, seeded
from simulations.population import Population, build_population
from simulations.scenario import Scenario
from simulations.training import evaluate, train
from strategies.identify import answer_identify

SCENARIO_KEY = "fl-audit-scenario"  # run configuration: the scenario as JSON


@functools.lru_cache(maxsize=4)
def shared_state(scenario_json: str) -> tuple[Scenario, Population, ModelSpec]:
    """A scenario with its population and model, built once a process."""
    scenario = Scenario.model_validate_json(scenario_json)
    population = build_population(scenario)
    return scenario, population, model_spec(scenario.model, population.dataset)


def make_client_app(scenario: Scenario) -> ClientApp:
    """The client app of a scenario; the defence decides which mods wrap its training."""
    app = ClientApp()
    app.train(mods=cast("list[Mod]", client_mods(scenario.defence)))(_train)
    app.evaluate()(_evaluate)
    answer_identify(app)
    return app


def _train(message: Message, context: Context) -> Message:
    scenario, population, spec = _state(context)
    client = partition_id(context)
    server_round = int(cast(int, _config(message)["server-round"]))
    local = _with_server_settings(scenario.training.all().of(client), _config(message))
    share = share_of_work(scenario, server_round, client)
    if share == 0:
        raise DropOutError(f"client {client} dropped out of round {server_round}")
    model = seeded(spec, seed=0)
    load_record(model, _arrays(message))
    loss, num_examples = train(
        model,
        population.clients[client],
        local,
        server_round=server_round,
        rng=scenario.seeds("client", server_round, client),
        share=share,
        device=choose_device(scenario.device),
    )
    metrics = MetricRecord({"num-examples": num_examples, "train_loss": loss})
    return _reply(message, {"arrays": to_record(model), "metrics": metrics})


def _evaluate(message: Message, context: Context) -> Message:
    """Loss and accuracy of the received model on the client's own training records."""
    scenario, population, spec = _state(context)
    records = population.clients[partition_id(context)]
    model = seeded(spec, seed=0)
    load_record(model, _arrays(message))
    losses, right = evaluate(model, records, device=choose_device(scenario.device))
    metrics = MetricRecord(
        {
            "num-examples": len(records),
            "eval_loss": float(losses.mean()),
            "eval_accuracy": float(right.mean()),
        }
    )
    return _reply(message, {"metrics": metrics})


def _with_server_settings(local: LocalTraining, config: ConfigRecord) -> LocalTraining:
    """Flower's FedProx sends its proximal term with the model."""
    mu = float(cast(float, config.get("proximal-mu", local.proximal_mu)))
    return local.model_copy(update={"proximal_mu": mu})


def partition_id(context: Context) -> int:
    """Which client this is."""
    return int(context.node_config["partition-id"])


def _state(context: Context) -> tuple[Scenario, Population, ModelSpec]:
    torch.set_num_threads(1)  # two threads change the bits of a small model
    return shared_state(str(context.run_config[SCENARIO_KEY]))


def _arrays(message: Message) -> ArrayRecord:
    return message.content.array_records["arrays"]


def _config(message: Message) -> ConfigRecord:
    return message.content.config_records["config"]


def _reply(message: Message, content: dict[str, ArrayRecord | MetricRecord]) -> Message:
    return Message(content=RecordDict(dict(content)), reply_to=message)

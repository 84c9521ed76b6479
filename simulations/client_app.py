"""The honest client: trains on its own records and replies as Flower's strategies expect.

A scenario arrives in the run configuration, so the same app runs in every engine. Whatever a
client draws depends on (scenario seed, round, partition id) only, never on which process runs it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from attacks.devices import choose_device
from fl_audit.factories import ModelSpec
from fl_audit.randomness import derived_seed
from fl_audit.records import Records
from simulations.arrays import load_record, to_record
from simulations.defences import local_trainings
from simulations.faults import DropOutError, share_of_work
from simulations.global_generators import seeded_globals
from simulations.malicious_clients import Circumstances, mods_of
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
    # built inside the first call of a worker: it must not take that call's draws
    with seeded_globals(derived_seed(scenario.seed, "population")):
        population = build_population(scenario)
    return scenario, population, model_spec(scenario.model, population.dataset)


@dataclass(frozen=True, slots=True, eq=False)
class Stand:
    """Other records, and other draws, for the same scenario: a shadow federation's.

    Attributes:
        clients: What each client trains on, by partition id.
        seed: Takes the scenario's place in what clients draw.
    """

    clients: Sequence[Records]
    seed: int


def make_client_app(scenario: Scenario, stand: Stand | None = None) -> ClientApp:
    """The client app of a scenario; defence and adversary decide which mods wrap its training.

    Args:
        stand: What to train on instead of the scenario's own population.
    """
    app = ClientApp()

    def state(context: Context) -> Circumstances:
        given, clients, spec = _state(context, stand)
        _, population, _ = shared_state(str(context.run_config[SCENARIO_KEY]))
        return Circumstances(given, clients, population.game, spec)

    @app.train(mods=mods_of(scenario, state, is_shadow=stand is not None))
    def train_(message: Message, context: Context) -> Message:
        return _train(message, context, stand)

    @app.evaluate()
    def evaluate_(message: Message, context: Context) -> Message:
        return _evaluate(message, context, stand)

    answer_identify(app)
    return app


def _train(message: Message, context: Context, stand: Stand | None) -> Message:
    scenario, clients, spec = _state(context, stand)
    client = partition_id(context)
    server_round = int(cast(int, _config(message)["server-round"]))
    local = local_trainings(scenario).of(client)
    share = share_of_work(scenario, server_round, client)
    if share == 0:
        raise DropOutError(f"client {client} dropped out of round {server_round}")
    model = seeded(spec, seed=0)
    load_record(model, _arrays(message))
    loss, num_examples = train(
        model,
        clients[client],
        local,
        server_round=server_round,
        rng=scenario.seeds("client", server_round, client),
        share=share,
        device=choose_device(scenario.device),
    )
    metrics = MetricRecord({"num-examples": num_examples, "train_loss": loss})
    return _reply(message, {"arrays": to_record(model), "metrics": metrics})


def _evaluate(message: Message, context: Context, stand: Stand | None) -> Message:
    """Loss and accuracy of the received model on the client's own training records."""
    scenario, clients, spec = _state(context, stand)
    records = clients[partition_id(context)]
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


def partition_id(context: Context) -> int:
    """Which client this is."""
    return int(context.node_config["partition-id"])


def _state(context: Context, stand: Stand | None) -> tuple[Scenario, Sequence[Records], ModelSpec]:
    torch.set_num_threads(1)  # two threads change the bits of a small model
    scenario, population, spec = shared_state(str(context.run_config[SCENARIO_KEY]))
    if stand is None:
        return scenario, population.clients, spec
    return scenario.model_copy(update={"seed": stand.seed}), stand.clients, spec


def _arrays(message: Message) -> ArrayRecord:
    return message.content.array_records["arrays"]


def _config(message: Message) -> ConfigRecord:
    return message.content.config_records["config"]


def _reply(message: Message, content: dict[str, ArrayRecord | MetricRecord]) -> Message:
    return Message(content=RecordDict(dict(content)), reply_to=message)

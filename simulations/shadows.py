"""Shadow federations: the scenario again, on records whose membership is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from torch import nn

from attacks.shadows.trace import central_trainer
from attacks.shadows.trainers import OnModel, Trainer
from attacks.shadows.training import Job
from fl_audit.errors import InputError
from fl_audit.factories import ModelSpec
from fl_audit.randomness import derived_rng, derived_seed
from fl_audit.run_directory import RunDirectory
from simulations.arrays import load_record, to_record
from simulations.client_app import SCENARIO_KEY, Stand, make_client_app, shared_state
from simulations.defences import build_strategy, local_trainings
from simulations.engines.calls import RepeatableStrategy
from simulations.engines.local import run_local
from simulations.models import seeded
from simulations.partitions import partition
from simulations.quiet import quiet_flower
from simulations.scenario import Scenario, load_scenario
from strategies.identify import identify_nodes, wait_for_nodes
from strategies.ordered_grid import OrderedGrid

Kind = Literal["federation", "central"]
NOT_TRAINING = (
    "title",
    "game",
    "threat_model",
    "recording",
    "audit",
)  # tables without a say in it


class FederationTrainer:
    """Trains each shadow model by a federation of the same scenario: `attacks` Trainer protocol.

    Clients, rounds, partition rule, local training, strategy, defence and faults are the
    scenario's; records are the job's, spread anew, and every draw depends on the job's seed.
    """

    def __init__(self, scenario: Scenario, spec: ModelSpec) -> None:
        self._scenario, self._spec = scenario, spec
        table = scenario.model_dump(mode="json", exclude=set(NOT_TRAINING))
        self.key: str | None = f"federation {json.dumps(table, sort_keys=True)}"
        self.description = (
            f"shadow federations of the same scenario ({scenario.federation.clients} clients, "
            f"{scenario.federation.rounds} rounds, {scenario.strategy.name}, defence "
            f"{scenario.defence.name})"
        )

    def train(self, jobs: Sequence[Job], on_model: OnModel) -> None:
        """Run a federation for each job, one after the other on the `local` engine."""
        for number, job in enumerate(jobs):
            with quiet_flower():
                model = self._one(job)
            on_model(number, model)

    def _one(self, job: Job) -> nn.Module:
        scenario, seed = self._scenario, derived_seed(job.seed, "federation") % 2**63
        rows = partition(
            job.records.labels,
            scenario.federation.clients,
            scenario.partition,
            rng=derived_rng(seed, "partition"),
        )
        stand = Stand([job.records.take(r) for r in rows], seed)
        model = seeded(self._spec, seed=int(derived_rng(seed, "model").integers(2**31)))
        final: list[ArrayRecord] = []
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            clients = identify_nodes(grid, wait_for_nodes(grid, scenario.federation.clients))
            inner = build_strategy(scenario.strategy, scenario.defence, scenario.federation)
            result = RepeatableStrategy(inner, seed=seed).start(
                OrderedGrid(grid, clients),
                initial_arrays=to_record(model),
                num_rounds=scenario.federation.rounds,
            )
            final.append(result.arrays)

        run_local(
            server,
            make_client_app(scenario, stand),
            num_clients=scenario.federation.clients,
            run_config={SCENARIO_KEY: scenario.model_dump_json()},
            seed=seed,
        )
        load_record(model, final[0])
        return model


def shadow_trainer(scenario: Scenario, kind: Kind) -> Trainer:
    """How shadow models of a scenario are trained.

    Args:
        kind: "federation", or "central": on all records at one place, with the scenario's local
            training, as many epochs as all rounds together.
    """
    _, _, spec = shared_state(scenario.model_dump_json())
    if kind == "federation":
        return FederationTrainer(scenario, spec)
    build, rounds = spec.builder(trusted=True), scenario.federation.rounds
    return central_trainer(build, local_trainings(scenario).default, rounds)


def run_trainer(run: RunDirectory, *, trusted: bool) -> Trainer | None:
    """The trainer of a recorded run; None without a scenario. As `recorded_scenario`."""
    scenario = recorded_scenario(run, trusted=trusted)
    return None if scenario is None else shadow_trainer(scenario, scenario.audit.shadows)


def recorded_scenario(run: RunDirectory, *, trusted: bool) -> Scenario | None:
    """The scenario of a recorded run; None for other recordings.

    Args:
        trusted: Whether code that it names (data, model) may be imported.

    Raises:
        InputError: If it names code and is not trusted.
    """
    if not run.scenario_file.is_file():
        return None
    scenario = load_scenario(run.scenario_file)
    named = [name for name in (scenario.data.name, scenario.model.name) if ":" in name]
    if named and not trusted:
        raise InputError(
            "scenario",
            named[0],
            "this run directory names code of its own, which is not imported unasked",
            f"If you trust it, name its model yourself: --model {scenario.model.name}",
        )
    return scenario

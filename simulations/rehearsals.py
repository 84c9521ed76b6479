"""Playing a scenario's federation again on given records, with a recording."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from fl_audit.factories import ModelSpec
from fl_audit.randomness import derived_rng
from fl_audit.records import Records
from fl_audit.run_directory import RunDirectory, RunManifest, ThreatModelRecord
from fl_audit.trace import RecordingPolicy
from fl_audit.versions import versions
from simulations.arrays import to_record
from simulations.client_app import SCENARIO_KEY, Stand, make_client_app, shared_state
from simulations.defences import build_strategy, local_trainings
from simulations.engines.calls import RepeatableStrategy
from simulations.engines.local import run_local
from simulations.malicious_server import with_malice
from simulations.models import seeded
from simulations.partitions import partition
from simulations.quiet import quiet_flower
from simulations.scenario import Scenario
from simulations.shadows import NOT_TRAINING, recorded_scenario
from strategies.curious import CuriousStrategy
from strategies.identify import identify_nodes, wait_for_nodes
from strategies.ordered_grid import OrderedGrid
from strategies.recorder import Recorder, utc_now


class FederationRehearser:
    """Plays a scenario on other records and records what its server sees.

    Clients, rounds, partition rule, local training, strategy, defence, faults and what a malicious
    server does are the scenario's. Implements `attacks.federated.rehearsal.Rehearser`.

    Args:
        scenario: The federation to play.
        spec: Its model.
        total: Records that all its clients hold together.
    """

    def __init__(self, scenario: Scenario, spec: ModelSpec, *, total: int) -> None:
        self._scenario, self._spec = scenario, spec
        self.total, self.num_clients = total, scenario.federation.clients
        table = scenario.model_dump(mode="json", exclude=set(NOT_TRAINING))
        self.key = f"rehearsal {json.dumps(table, sort_keys=True)}"
        self.description = "shadow federations of the same scenario"

    def spread(
        self, labels: NDArray[np.int64], *, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Rows of each client, by the scenario's partition rule."""
        return partition(labels, self.num_clients, self._scenario.partition, rng=rng)

    def play(self, clients: Sequence[Records], *, seed: int, folder: Path) -> None:
        """Run the federation on the `local` engine; a run directory stands at `folder`."""
        scenario = self._scenario
        run = RunDirectory.create(folder, overwrite=folder.exists())
        model = seeded(self._spec, seed=int(derived_rng(seed, "model").integers(2**31)))
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            nodes = identify_nodes(grid, wait_for_nodes(grid, self.num_clients))
            inner = build_strategy(scenario.strategy, scenario.defence, scenario.federation)
            _, population, _ = shared_state(scenario.model_dump_json())
            inner = with_malice(inner, scenario, population.game, self._spec, clients=nodes)
            strategy = CuriousStrategy(
                RepeatableStrategy(inner, seed=seed),
                trace=Recorder(run, self._manifest(seed), clients=nodes),
            )
            strategy.start(
                OrderedGrid(grid, nodes),
                initial_arrays=to_record(model),
                num_rounds=scenario.federation.rounds,
            )

        with quiet_flower():
            run_local(
                server,
                make_client_app(scenario, Stand(clients, seed)),
                num_clients=self.num_clients,
                run_config={SCENARIO_KEY: scenario.model_dump_json()},
                seed=seed,
            )

    def _manifest(self, seed: int) -> RunManifest:
        scenario = self._scenario
        return RunManifest(
            title=f"Shadow federation of {scenario.title}",
            created=utc_now(),
            seed=seed,
            engine="local",
            versions=versions(),
            threat_model=ThreatModelRecord.of(scenario.adversary_model()),
            strategy=scenario.strategy.model_dump(mode="json"),
            defence=scenario.defence.model_dump(mode="json"),
            model=self._spec,
            local_training=local_trainings(scenario),
            recording=RecordingPolicy(),
            planned_rounds=scenario.federation.rounds,
            num_clients=self.num_clients,
        )


def rehearser_of(scenario: Scenario) -> FederationRehearser:
    """The rehearser of a scenario."""
    _, population, spec = shared_state(scenario.model_dump_json())
    return FederationRehearser(scenario, spec, total=sum(map(len, population.clients)))


def run_rehearser(run: RunDirectory, *, trusted: bool) -> FederationRehearser | None:
    """The rehearser of a recorded run; None without a scenario. As `recorded_scenario`."""
    scenario = recorded_scenario(run, trusted=trusted)
    return None if scenario is None else rehearser_of(scenario)

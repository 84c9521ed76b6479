"""The server app of a simulated federation: a curious server around any of Flower's strategies."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from attacks.devices import choose_device
from fl_audit.run_directory import RunDirectory, RunManifest, Utility
from fl_audit.stats import mean_ci, proportion
from fl_audit.verify import RECORDING
from simulations.arrays import load_record, to_record
from simulations.client_app import SCENARIO_KEY, shared_state
from simulations.defences import build_strategy
from simulations.engines.calls import RepeatableStrategy
from simulations.malicious_server import with_malice
from simulations.models import seeded
from simulations.training import evaluate
from strategies.curious import CuriousStrategy
from strategies.identify import identify_nodes, wait_for_nodes
from strategies.ordered_grid import OrderedGrid
from strategies.recorder import Recorder

RoundCallback = Callable[[int], None]


def make_server_app(
    run: RunDirectory,
    manifest: RunManifest,
    *,
    resume: bool = False,
    on_round: RoundCallback | None = None,
) -> ServerApp:
    """A server app that records into `run`.

    Args:
        run: An empty run directory.
        manifest: What is about to run.
        resume: `run` was interrupted; replay what it recorded.
        on_round: Called after each round, for a progress bar.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        scenario, population, spec = shared_state(str(context.run_config[SCENARIO_KEY]))
        nodes = wait_for_nodes(grid, scenario.federation.clients)
        clients = identify_nodes(grid, nodes)
        grid = OrderedGrid(grid, clients)
        recorder = Recorder(run, manifest, clients=clients, resume=resume)
        inner = build_strategy(scenario.strategy, scenario.defence, scenario.federation)
        inner = with_malice(inner, scenario, population.game, spec, clients=clients)
        strategy = CuriousStrategy(
            RepeatableStrategy(inner, seed=scenario.seed),
            trace=recorder,
            attacks=scenario.audit.attacks,
            every=scenario.audit.every,
            trust_model=True,  # the scenario's author names the model
            on_round=on_round,
        )
        model = seeded(spec, seed=int(scenario.seeds("model").integers(2**31)))
        device = choose_device(scenario.device)

        def utility(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            load_record(model, arrays)
            losses, right = evaluate(model, population.test, device=device)
            model.cpu()
            accuracy = proportion(int(right.sum()), len(right))
            is_known = len(losses) > 1 and bool(np.isfinite(losses).all())
            entry = Utility(
                round=server_round, loss=mean_ci(losses) if is_known else None, accuracy=accuracy
            )
            with recorder.guard(RECORDING, server_round):
                recorder.update(utility=[*recorder.manifest.utility, entry])
            return MetricRecord({"accuracy": accuracy.value})

        logging.getLogger("fl_audit").debug("starting %d rounds", scenario.federation.rounds)
        strategy.start(
            grid,
            initial_arrays=to_record(model),
            num_rounds=scenario.federation.rounds,
            evaluate_fn=utility,
        )

    return app

"""How long a federation of virtual clients takes on the `local` engine, and what recording costs.

    python tests/benchmarks/virtual_clients.py [--clients 100] [--rounds 20]

Baseline: the same rounds with the bare strategy, in the same run. Recording costs what is above it.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from simulations.arrays import to_record
from simulations.client_app import SCENARIO_KEY, make_client_app, shared_state
from simulations.defences import build_strategy
from simulations.engines.local import run_local
from simulations.models import seeded
from simulations.scenario import Scenario, parse_scenario
from strategies.curious import CuriousStrategy


def seconds(scenario: Scenario, trace: Path | None) -> float:
    """Wall time of all rounds; recorded into `trace` if given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        _, _, spec = shared_state(scenario.model_dump_json())
        strategy = build_strategy(scenario.strategy, scenario.defence, scenario.federation)
        if trace is not None:
            strategy = CuriousStrategy(strategy, trace=trace)
        arrays = to_record(seeded(spec, seed=0))
        strategy.start(grid, arrays, num_rounds=scenario.federation.rounds)

    start = time.perf_counter()
    run_local(
        app,
        make_client_app(scenario),
        num_clients=scenario.federation.clients,
        run_config={SCENARIO_KEY: scenario.model_dump_json()},
        seed=0,
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    scenario = parse_scenario(
        {
            "federation": {"clients": given.clients, "rounds": given.rounds},
            "data": {"examples_per_client": max(1, 1000 // given.clients)},
            "model": {"name": "mlp", "hidden": [32]},
        }
    )
    seconds(parse_scenario({"federation": {"rounds": 1}}), None)  # imports
    bare, watched = [], []
    for number in range(given.repeats):  # in turn, so that a busy moment hits both
        with tempfile.TemporaryDirectory() as folder:
            bare.append(seconds(scenario, None))
            watched.append(seconds(scenario, Path(folder) / f"run{number}"))
    plain, recorded = statistics.median(bare), statistics.median(watched)
    print(f"{given.clients} clients x {given.rounds} rounds, median of {given.repeats}")
    print(f"bare strategy   {plain:7.2f} s")
    print(f"recorded        {recorded:7.2f} s   ({recorded / plain:.2f} x)")


if __name__ == "__main__":
    main()

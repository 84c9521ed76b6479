"""How a federation grows with its number of clients: 10 % of them a round, three recorded.

    python tests/benchmarks/growth.py [--engine local|ray] [--clients 10 100 1000] [--rounds 20]

Every size runs in a process of its own, so that its peak memory is its own. Clients hold ten
records each, whatever their number. Baseline: one sampled client of the smallest federation, in
the same run; a figure of 1 or less beside a larger one means linear growth or better.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

FRACTION, EXAMPLES = 0.1, 10


def measure(clients: int, rounds: int, engine: str) -> dict[str, float | str]:
    """Run one federation in this process."""
    from simulations.run import run_scenario
    from simulations.scenario import parse_scenario

    records = clients * EXAMPLES + 400  # and some to test on
    scenario = parse_scenario(
        {
            "federation": {"clients": clients, "rounds": rounds, "fraction": FRACTION},
            "data": {
                "name": "sklearn.datasets:make_classification",
                "settings": {"n_samples": records, "n_features": 64, "random_state": 0},
                "examples_per_client": EXAMPLES,
                "test": 100,
            },
            "game": {"members": 50, "auxiliary": 0},
            "model": {"name": "mlp", "hidden": [32]},
            "recording": {"record": "targets", "clients": [0, 1, 2]},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        report = run_scenario(scenario, out=Path(folder) / "run", engine=engine)  # type: ignore[arg-type]
    assert report.trace is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    seconds = report.run.seconds["federation"]
    return {"seconds": seconds, "megabytes": peak, "digest": report.trace.digest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(given.one, given.rounds, given.engine)))
        return
    baseline = None
    for clients in given.clients:
        arguments = ["--one", str(clients), "--rounds", str(given.rounds), "--engine", given.engine]
        done = subprocess.run(
            [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        sampled = max(1, round(clients * FRACTION)) * given.rounds
        each = found["seconds"] / sampled
        baseline = baseline or each
        print(
            f"{given.engine} {clients:5d} clients, {sampled:5d} client calls: "
            f"{found['seconds']:6.1f} s, {1e3 * each:6.1f} ms a call ({each / baseline:.2f} x), "
            f"peak {found['megabytes']:.0f} MB, digest {found['digest'][:10]}"
        )


if __name__ == "__main__":
    main()

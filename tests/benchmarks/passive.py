"""What attacks on rounds cost: the whole passive set, and its growth in clients and rounds.

    python tests/benchmarks/passive.py [--clients 10 50 100] [--rounds 3 6 12]

First the digits federation of 5 clients and 6 rounds with 400 candidates (and as many null
candidates): every passive attack on updates that needs no shadow federation, each with its
seconds. Then a quick attack (cosine), the one that runs a model per client (loss_series) and the
dearest (gradient_regression) on more clients, and on more rounds. Every size runs in a process of
its own, so that its peak memory is its own. Baseline: one client in one round of the smallest
size, in the same run; a figure of 1 or less beside a larger one means linear growth or better.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GROWING = ["cosine", "loss_series", "gradient_regression"]


def passive() -> list[str]:
    """Names of all passive attacks on updates that run on pictures without shadow federations."""
    from attacks.registry import ATTACKS, load_attack

    elsewhere = {"embedding_rows", "user_membership", "federated_stacking"}
    specs = {name: load_attack(name) for name in sorted(set(ATTACKS) - elsewhere)}
    return [
        name
        for name, spec in specs.items()
        if spec.kind == "membership" and not spec.is_on_model and spec.activity != "malicious"
    ]


def measure(clients: int, rounds: int, names: list[str]) -> dict[str, Any]:
    """Seconds of each attack on one federation in this process, and its peak memory in MB."""
    from attacks.audit import audit_run
    from simulations.run import run_scenario
    from simulations.scenario import parse_scenario

    records = 8 * clients + 1400  # and some to test on
    digits = {"name": "digits", "examples_per_client": 40}
    made = {
        "name": "sklearn.datasets:make_classification",
        "settings": {"n_samples": records, "n_features": 64, "random_state": 0},
        "examples_per_client": 8,
    }
    scenario = parse_scenario(
        {
            "federation": {"clients": clients, "rounds": rounds},
            "data": {**(digits if clients == 5 else made), "test": 100},
            "game": {"members": 200 if clients == 5 else 80, "question": "client"},
            "model": {"name": "mlp", "hidden": [128]},
        }
    )
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run_scenario(scenario, out=run)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        for name in names:
            start = time.perf_counter()
            (result,) = audit_run(run, attacks=[name])
            seconds[name] = time.perf_counter() - start
            assert result.record.kind == "membership", result.record
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"seconds": seconds, "before": before, "peak": peak}


def in_own_process(clients: int, rounds: int, names: list[str]) -> dict[str, Any]:
    arguments = ["--one", json.dumps([clients, rounds, names])]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 6, 12])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(*json.loads(given.one))))
        return
    whole = in_own_process(5, 6, passive())
    for name, seconds in sorted(whole["seconds"].items(), key=lambda item: -item[1]):
        print(f"{name:28s} {seconds:6.2f} s")
    total = sum(whole["seconds"].values())
    print(f"{len(whole['seconds'])} attacks, 5 clients x 6 rounds x 400: {total:.1f} s")
    sizes = [(clients, 4) for clients in given.clients] + [(10, r) for r in given.rounds]
    base: dict[str, float] = {}
    for clients, rounds in sizes:
        found = in_own_process(clients, rounds, GROWING)
        parts = []
        for name, seconds in found["seconds"].items():
            each = seconds / (clients * rounds)
            parts.append(f"{name} {seconds:.2f} s ({each / base.setdefault(name, each):.2f} x)")
        memory = f"memory {found['before']:.0f} -> {found['peak']:.0f} MB"
        print(f"{clients:4d} clients x {rounds:2d} rounds: {', '.join(parts)}; {memory}")


if __name__ == "__main__":
    main()

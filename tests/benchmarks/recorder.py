"""What recording costs: seconds of the recorder beside those of the round, and memory over rounds.

    python tests/benchmarks/recorder.py

Baseline: a round of ten clients that each do ten SGD steps (batch 32, 32x32 RGB) on ResNet-18
(11.2 M parameters), broadcast and aggregation included, in the same run. Recording should take at
most 5 % of it. Then 50 rounds without training, to see whether the server's memory grows.
"""

from __future__ import annotations

import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from simulations.arrays import load_record, to_record
from simulations.engines.local import run_local
from simulations.models import MODELS
from strategies.curious import CuriousStrategy
from strategies.recorder import Recorder

CLIENTS, STEPS, BATCH, ROUNDS = 10, 10, 32, 50
SHAPE = [3, 32, 32]


def training_app() -> ClientApp:
    app, model = ClientApp(), MODELS["resnet18"](input_shape=SHAPE, num_classes=10)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        load_record(model, message.content.array_records["arrays"])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = model(torch.rand(BATCH, *SHAPE)).logsumexp(1).mean()
            loss.backward()
            optimizer.step()
        return reply(message, to_record(model))

    return app


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        changed = {k: Array((v.numpy() * 0.99).astype(np.float32)) for k, v in arrays.items()}
        return reply(message, ArrayRecord(changed))

    return app


def reply(message: Message, arrays: ArrayRecord) -> Message:
    metrics = MetricRecord({"num-examples": 320})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def run(
    app: ClientApp, model: str, rounds: int, trace: Path, on_round: Callable[[int], None]
) -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = CuriousStrategy(FedAvg(fraction_evaluate=0.0), trace=trace, on_round=on_round)
        arrays = to_record(MODELS[model](input_shape=SHAPE, num_classes=10))
        strategy.start(grid, arrays, num_rounds=rounds)

    run_local(server, app, num_clients=CLIENTS, run_config={}, seed=0)


def timed(seconds: Counter[str], name: str) -> None:
    """Count the seconds that a method of the recorder takes."""
    method = getattr(Recorder, name)

    def wrapper(self: Recorder, *args: Any) -> None:
        start = time.perf_counter()
        method(self, *args)
        seconds[name] += time.perf_counter() - start

    setattr(Recorder, name, wrapper)


def megabytes(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6


def main() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    seconds: Counter[str] = Counter()
    for name in ("sent", "received", "aggregated"):
        timed(seconds, name)
    rounds = 2
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run(training_app(), "resnet18", rounds, Path(folder) / "run", lambda _: None)
        whole, size = time.perf_counter() - start, megabytes(Path(folder))
    own = sum(seconds.values())
    print(f"{rounds} rounds, {CLIENTS} clients x {STEPS} steps on ResNet-18: {whole:.1f} s")
    print(f"recorder {own:.2f} s = {100 * own / (whole - own):.2f} % of the rest ({dict(seconds)})")
    print(f"{size:.0f} MB recorded, {size / own:.0f} MB/s")

    # a process of its own: the peak of the training above would hide any growth
    done = subprocess.run(
        [sys.executable, __file__, "--memory"], check=True, stdout=subprocess.PIPE
    )
    print(done.stdout.decode(), end="")


def memory() -> None:
    """50 rounds of 11.2 M parameters whose clients send back what they got, slightly changed."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    resident: dict[int, float] = {}

    def note(server_round: int) -> None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        resident[server_round] = pages * resource.getpagesize() / 1e6
        shutil.rmtree(folder / "run" / "trace" / f"round_{server_round - 1:04d}", True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(echo_app(), "resnet18", ROUNDS, folder / "run", note)
    chosen = {r: round(resident[r]) for r in (1, 2, 5, 10, 20, 30, 40, 50)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"resident (MB) after round: {chosen}; largest ever {peak:.0f} MB")


if __name__ == "__main__":
    memory() if "--memory" in sys.argv else main()

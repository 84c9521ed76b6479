"""Shadow models and scores: how much faster than the plain way.

    python tests/benchmarks/shadows.py

Training: 32 models of an MLP as one batched model, and 32 of a small CNN in worker processes (their
start included). Baseline: the same models from the same seeds and batches, one after the other in
an ordinary torch loop, with the better of one or two torch threads, in the same run. Accuracies
must agree. Scores: 20,000 and 200,000 records x 16 shadow models x 10 classes, from logits, with
peak memory beyond the input; growth is n log n.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from attacks.membership.base import base_scores
from attacks.membership.lira import lira_scores
from attacks.membership.rmia import rmia_scores
from attacks.shadows.trainers import DefaultTrainer
from attacks.shadows.training import Job, TrainingConfig, epoch_batches, fresh_builder
from fl_audit.randomness import derived_seed
from fl_audit.records import Records
from simulations.models import convnet

CLASSES, MODELS = 10, 16


def jobs(num: int, records: Records) -> list[Job]:
    rng = np.random.default_rng(0)
    half = len(records) // 2
    return [Job(records.take(rng.permutation(len(records))[:half]), seed) for seed in range(num)]


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def plainly(module: nn.Module, work: list[Job], config: TrainingConfig) -> dict[int, nn.Module]:
    """What one writes without an engine."""
    build, models = fresh_builder(module), {}
    for number, job in enumerate(work):
        model = build(derived_seed(job.seed, "weights"))
        inputs, labels = torch.from_numpy(job.records.inputs), torch.from_numpy(job.records.labels)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        for batches in epoch_batches(len(job.records), config, job.seed):
            for rows in batches:
                optimizer.zero_grad()
                loss: Any = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
                loss.backward()
                optimizer.step()
        models[number] = model
    return models


def ours(module: nn.Module, work: list[Job], config: TrainingConfig) -> dict[int, nn.Module]:
    found: dict[int, nn.Module] = {}
    DefaultTrainer(fresh_builder(module), config).train(work, found.__setitem__)
    return found


def accuracy(models: dict[int, nn.Module], records: Records) -> float:
    inputs, labels = torch.from_numpy(records.inputs), torch.from_numpy(records.labels)
    with torch.no_grad():
        rights = [(m.eval()(inputs).argmax(1) == labels).double().mean() for m in models.values()]
    return float(torch.stack(rights).mean())


def compare(name: str, module: nn.Module, work: list[Job], records: Records, epochs: int) -> None:
    config = TrainingConfig(epochs=epochs, batch_size=32)
    ours(module, work[:1], config)  # what torch imports with its first optimizer
    baselines: list[tuple[float, float]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        models = plainly(module, work, config)
        baselines.append((time.perf_counter() - start, accuracy(models, records)))
    torch.set_num_threads(1)
    start = time.perf_counter()
    models = ours(module, work, config)
    fast = time.perf_counter() - start
    plain = min(taken for taken, _ in baselines)
    print(
        f"{name}: one after the other {baselines[0][0]:.2f} s with one thread, "
        f"{baselines[1][0]:.2f} s with two, ours {fast:.2f} s: {plain / fast:.2f} x "
        f"(accuracies {baselines[0][1]:.4f}, {baselines[1][1]:.4f}, "
        f"{accuracy(models, records):.4f})"
    )


def problem(num: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    order = np.arange(MODELS)[:, None].repeat(num, axis=1)
    return (
        rng.normal(size=(num, CLASSES)),
        rng.normal(size=(MODELS, num, CLASSES)),
        rng.permuted(order, axis=0) < MODELS // 2,
        rng.integers(CLASSES, size=num),
    )


def main() -> None:
    torch.set_num_threads(1)
    inputs, labels = load_digits(return_X_y=True)
    digits = Records(np.arange(len(inputs)), (inputs / 16).astype(np.float32), labels)
    mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    compare("32 MLPs, 20 epochs", mlp, jobs(32, digits), digits, epochs=20)
    rng = np.random.default_rng(0)
    pictures = Records(
        np.arange(2000),
        rng.random((2000, 3, 32, 32), dtype=np.float32),
        rng.integers(CLASSES, size=2000),
    )
    cnn = convnet(input_shape=[3, 32, 32], num_classes=CLASSES, width=16)
    compare("32 CNNs, 10 epochs", cnn, jobs(32, pictures), pictures, epochs=10)

    for function in (rmia_scores, lira_scores, base_scores):
        times = []
        for num in (20_000, 200_000):
            given = problem(num)
            times.append(seconds(lambda: function(*given)))  # noqa: B023 — called at once
            tracemalloc.start()
            function(*given)
            peak = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            print(
                f"{function.__name__} {num:7d}: {times[-1]:.3f} s, {peak:.0f} MB beyond the input"
            )
        print(f"  growth {times[1] / times[0]:.1f} x for 10 times as many")


if __name__ == "__main__":
    main()

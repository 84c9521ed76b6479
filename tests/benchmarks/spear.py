"""How many photographs SPEAR gives back at once, and in what time.

    python tests/benchmarks/spear.py [--sizes 2 4 6 8 12 16 20 24 32] [--batches 10]
        [--first-seed 0]

Linear 3072-400, ReLU, 400-200, ReLU, 200-10; 32x32 tiles of bundled photographs drawn at random,
labels are the photographs; gradient of the mean cross-entropy in float64 and in float32. A line
for each batch size: batches of which every tile is exact (largest error < 1e-6), tiles that are
exact, tiles that the attack calls sure, the largest error among those, and seconds a batch.
Then the same without the next layer's gradient, and Gaussian inputs, where no example is alone in
a neuron and sampling has to find the batch.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.reconstruction.metrics import EXACT
from attacks.reconstruction.spear import Budget, DenseGradient, recover_batch
from attacks.reconstruction.spear_layer import Layer
from simulations.data.builtin import tiles

MAX_TRIES = 100_000


def drawn(num: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Tiles, flat, and their labels."""
    records = tiles().records
    rows = np.random.default_rng(seed).choice(len(records), num, replace=False)
    return records.inputs[rows].reshape(num, -1).astype(np.float64), records.labels[rows]


def gaussian(num: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, 3072)), rng.integers(0, 6, num)


def gradients(
    inputs: NDArray[np.float64], labels: NDArray[np.int64], seed: int, dtype: torch.dtype
) -> list[DenseGradient]:
    """Gradients of the first two layers."""
    torch.manual_seed(seed)
    dense = [nn.Linear(3072, 400), nn.Linear(400, 200), nn.Linear(200, 10)]
    net = nn.Sequential(dense[0], nn.ReLU(), dense[1], nn.ReLU(), dense[2]).to(dtype)
    logits = net(torch.from_numpy(inputs).to(dtype))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    found = []
    for layer in dense[:2]:
        weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias], retain_graph=True)
        arrays = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
        found.append(DenseGradient(weight.numpy(), bias.numpy(), Layer(*arrays)))
    return found


def line(num: int, seeds: range, kind: str, dtype: torch.dtype) -> None:
    whole = exact = sure = 0
    largest, seconds, tries = 0.0, [], []
    for seed in seeds:
        inputs, labels = gaussian(num, seed) if kind == "gaussian" else drawn(num, seed)
        first, second = gradients(inputs, labels, seed, dtype)
        start = time.perf_counter()
        batch = recover_batch(
            first,
            rng=np.random.default_rng(seed),
            following=None if kind == "one layer" else second,
            budget=Budget(max_batch=num, max_tries=MAX_TRIES),
        )
        seconds.append(time.perf_counter() - start)
        tries.append(batch.tries)
        apart = [np.abs(inputs - found).max(axis=1).min() for found in batch.inputs[batch.is_sure]]
        good = sum(error < EXACT for error in apart)
        whole, exact, sure = whole + (good == num), exact + good, sure + len(apart)
        largest = max([largest, *map(float, apart)])
    name = str(dtype).removeprefix("torch.")
    print(
        f"{kind}, {name}, B = {num}: {whole} of {len(seeds)} batches whole, "
        f"{exact} exact and {sure} sure of {num * len(seeds)}, "
        f"largest error of these {largest:.1e}, "
        f"{np.median(seconds):.2f} s (most {max(seconds):.2f}), draws {max(tries)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 6, 8, 12, 16, 20, 24, 32])
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(given.first_seed, given.first_seed + given.batches)
    for kind, dtype in (
        ("tiles", torch.float64),
        ("tiles", torch.float32),
        ("one layer", torch.float64),
        ("gaussian", torch.float64),
    ):
        for num in given.sizes:
            line(num, seeds, kind, dtype)


if __name__ == "__main__":
    main()

"""How many of a batch's labels the last layer's gradient gives back.

    python tests/benchmarks/labels.py [--nets small_convnet convnet lenet] [--seeds 5] [--draws 5]

Untrained seeded nets of 10 classes in eval mode, 32x32 tiles of photographs, labels drawn uniformly
whatever the tile shows. Each line is one net, batch size and way to count, with the overlap (share
of labels in the right class) as mean over seeds, its 95 % interval over seeds, and the number of
batches: the softmax of proxies (disjoint from the batches), of noise, of proxies with the weight's
gradient alone, and iDLG's signs. `told` is the share of batches whose size is told from the shares
(up to a common factor of the counts). The last lines are clients with 64 tiles and several local
steps, with the softmax averaged along the way to the returned model, to one trained on proxies, or
not averaged.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.reconstruction.label_softmax import noise_inputs
from attacks.reconstruction.labels import LocalWork, estimate_labels, idlg_counts, label_counts
from attacks.reconstruction.optimisation.simulation import pseudo_gradient
from attacks.reconstruction.resimulation import simulated_update
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining
from fl_audit.stats import mean_ci
from simulations.data.builtin import tiles
from simulations.models import convnet, lenet_zhu

CLASSES = 10
SHAPE = [3, 32, 32]
SIZES = (4, 16, 64)
POOL = 100  # tiles that batches are drawn from
Overlaps = dict[tuple[str, int, str], list[list[float]]]


def small_convnet() -> nn.Module:
    """The small ConvNet of gradient-inversion papers: eight convolutions with BatchNorm."""
    layers: list[nn.Module] = []
    channels = SHAPE[0]
    for number, width in enumerate((64, 128, 128, 256, 256, 256, 256, 256)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(3)] if number in (5, 7) else []
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 9, CLASSES))


NETS: dict[str, Callable[[], nn.Module]] = {
    "small_convnet": small_convnet,
    "convnet": lambda: convnet(input_shape=SHAPE, num_classes=CLASSES),
    "lenet": lambda: lenet_zhu(input_shape=SHAPE, num_classes=CLASSES),
    "lenet_reference": lambda: lenet_zhu(
        input_shape=SHAPE, num_classes=CLASSES, initialisation="reference"
    ),
}
PROXIES = {"small_convnet": 32}  # 0.1 s each; 200 for the others
NOISE = {"small_convnet": 32}


def gradients_of(
    model: nn.Module, inputs: torch.Tensor, labels: NDArray[np.int64]
) -> dict[str, torch.Tensor]:
    """Gradient of the mean cross-entropy by parameter name, float32."""
    loss = nn.functional.cross_entropy(model(inputs), torch.from_numpy(labels))
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def overlap(counts: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    true = np.bincount(labels, minlength=CLASSES)
    return float(np.minimum(true, counts).sum() / len(labels))


def batches(net: str, seed: int, draws: int, found: Overlaps) -> None:
    """Overlaps of one seeded net.

    In eval mode records do not meet before the loss, so all but the last layer answers each tile
    once, and the last layer is the model that is attacked.
    """
    torch.manual_seed(seed)
    model = NETS[net]().eval()
    assert isinstance(model, nn.Sequential)
    body, head = model[:-1], model[-1:]
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    number = PROXIES.get(net, 200)
    inputs = torch.from_numpy(rng.permutation(tiles().records.inputs)[: number + POOL])
    noise = noise_inputs(SHAPE, NOISE.get(net, 200), generator=generator)
    with torch.no_grad():
        seen, seen_noise = (
            torch.cat([body(part) for part in torch.split(whole, 32)]) for whole in (inputs, noise)
        )
    proxies, pool = seen[:number].numpy(), seen[number:]
    for size in SIZES:
        each: dict[str, list[float]] = defaultdict(list)
        for _ in range(draws):
            labels = rng.integers(CLASSES, size=size)
            rows = torch.from_numpy(rng.choice(POOL, size, replace=False))
            gradients = gradients_of(head, pool[rows], labels)
            weight_only = {name: g for name, g in gradients.items() if name != "0.bias"}
            ways = {
                "proxies": label_counts(head, gradients, size, proxy_inputs=proxies),
                "proxies, weight only": label_counts(head, weight_only, size, proxy_inputs=proxies),
                "noise": label_counts(head, gradients, size, proxy_inputs=seen_noise.numpy()),
                "iDLG": idlg_counts(head, gradients, size),
            }
            for way, counts in ways.items():
                each[way].append(overlap(counts, labels))
            each["told"].append(is_told(head, gradients, proxies, labels))
        for way, overlaps in each.items():
            found[net, size, way].append(overlaps)


def is_told(
    model: nn.Module,
    gradients: dict[str, torch.Tensor],
    proxies: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> float:
    """Whether the batch size is found, up to the common factor of the true counts."""
    try:
        found = estimate_labels(model, gradients, None, proxy_inputs=proxies)
    except InputError:
        return 0.0
    true = np.bincount(labels, minlength=CLASSES)
    return float(found.batch_size == len(labels) // gcd(*true.tolist()))


def several_steps(epochs: int, rate: float, seed: int, found: Overlaps) -> None:
    """Overlaps of a client of 64 tiles, 8 in a batch, on the GroupNorm ConvNet."""
    torch.manual_seed(seed)
    model = NETS["convnet"]()
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    inputs = rng.permutation(tiles().records.inputs)
    proxies, own = inputs[:200], inputs[200:264]
    labels = rng.integers(CLASSES, size=len(own))
    training = LocalTraining(learning_rate=rate, local_epochs=epochs, batch_size=8)
    update = simulated_update(
        model, torch.from_numpy(own), torch.from_numpy(labels), training, rate, rng=rng
    )
    steps = training.steps(len(own))
    gradients = pseudo_gradient(update, rate, steps)
    for way in ("path", "simulated", "none"):
        work = LocalWork(training, rate, len(own), correction=way)
        counts = label_counts(
            model, gradients, len(own), proxy_inputs=proxies, generator=generator, work=work
        )
        name = f"convnet, {steps} steps of {rate}"
        found[name, len(own), way].append([overlap(counts, labels)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: Overlaps = defaultdict(list)
    for seed in range(given.seeds):
        for net in given.nets:
            batches(net, seed, given.draws, found)
        if "convnet" in given.nets:
            for epochs, rate in ((2, 0.001), (2, 0.01), (5, 0.05)):
                several_steps(epochs, rate, seed, found)
    for (net, size, way), overlaps in found.items():
        means = np.array([np.mean(of_seed) for of_seed in overlaps])
        mean = mean_ci(means, bounds=(0.0, 1.0))
        trials = sum(len(of_seed) for of_seed in overlaps)
        print(
            f"{net:28s} B = {size:2d}  {way:20s} {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
            f"  {len(means)} seeds, {trials} batches"
        )


if __name__ == "__main__":
    main()

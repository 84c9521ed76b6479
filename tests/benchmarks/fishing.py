"""What fishing by the last layer gives back: digits, small nets with fresh weights, FedSGD.

    python tests/benchmarks/fishing.py [--net convnet] [--size 8 64] [--batches 20]

The server has 600 digits of its own; batches are of the 1,197 others, of all classes, and classes
are fished for in turn. Torch's autograd gives a batch's gradient, and the client's update is what
float32 weights change by at learning rate 0.1. For each net and batch size, one line: the
probability that exactly one record passes, by the server's own records (mean of ten classes) and on
the others; of all batches, the share that had one (and, without a feature cut, the theory's); of
those, the share that was claimed, and the claims' share with PSNR above 30 and 20 dB.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import nn

from attacks.reconstruction.fishing_layer import (
    Passing,
    caught_gradient,
    fish_last_layer,
    last_names,
    passes_layer,
    passing_share,
)
from attacks.reconstruction.fishing_search import FishingSettings, search_record
from attacks.reconstruction.metrics import psnr
from fl_audit.files import Arrays
from fl_audit.records import Records
from simulations.data.builtin import digits
from simulations.models import MODELS

RATE, CLASSES, SHAPE, OWN = 0.1, 10, (1, 8, 8), 600


def gradient(net: nn.Module, sent: Arrays, batch: Records) -> dict[str, np.ndarray]:
    """As it is read off a float32 update."""
    net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in sent.items()})
    logits = net(torch.from_numpy(np.asarray(batch.inputs)))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels))
    found = torch.autograd.grad(loss, list(net.parameters()))
    moved = {}
    for (name, value), g in zip(net.named_parameters(), found, strict=True):
        after = value.detach() - RATE * g
        moved[name] = (value.detach().double() - after.double()).numpy() / RATE
    return moved


def measure(name: str, size: int, batches: int, settings: FishingSettings) -> str:
    """One line of figures."""
    records = digits().records
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(records))
    proxy, others = records.take(rows[:OWN]), records.take(rows[OWN:])
    torch.manual_seed(0)
    net = MODELS[name](input_shape=SHAPE, num_classes=CLASSES)
    arrays = {n: v.numpy().copy() for n, v in net.state_dict().items()}
    own_chance, chance, single, found = [], [], 0, []
    for number in range(batches):
        label = number % CLASSES
        sent = fish_last_layer(net, arrays, proxy, label, batch=size)
        passed = passes_layer(net, sent, last_names(net), others)
        is_own = others.labels == label
        share = passing_share(net, sent, label, proxy)
        assert share is not None  # there are records
        own_chance.append(share.alone(size))
        fresh = Passing(float((passed & is_own).mean()), float((passed & ~is_own).mean()))
        chance.append(fresh.alone(size))
        drawn = rng.choice(len(others), size, replace=False)
        which = drawn[passed[drawn]]
        if len(which) != 1 or not is_own[which[0]]:
            continue
        single += 1
        caught = caught_gradient(net, sent, gradient(net, sent, others.take(drawn)), label)
        seed = torch.Generator().manual_seed(number)
        inversion = search_record(caught, label, settings, proxies=proxy, generator=seed)
        if inversion is not None:
            found.append(psnr(inversion.inputs, np.asarray(others.take(which).inputs)))
    decibel = np.array(found)
    return (
        f"{name} B={size}: one passes {np.mean(own_chance):.2f} (own records), "
        f"{np.mean(chance):.2f} (others), class cut {Passing(0.1, 0.0).alone(size):.2f}; "
        f"{single} of {batches} batches had one; {len(found)} claimed, "
        f"{(decibel > 30).sum()} above 30 dB, {(decibel > 20).sum()} above 20 dB, "
        f"median {np.median(decibel) if len(found) else np.nan:.1f} dB"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", nargs="*", default=["lenet_zhu", "convnet", "resnet8"])
    parser.add_argument("--size", nargs="*", type=int, default=[8, 32, 64])
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=600)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    settings = FishingSettings(restarts=chosen.restarts, iterations=chosen.iterations)
    for name in chosen.net:
        for size in chosen.size:
            print(measure(name, size, chosen.batches, settings), flush=True)


if __name__ == "__main__":
    main()

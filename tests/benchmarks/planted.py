"""What planted layers give back: imprint, quantile traps and trap weights, on photographs' tiles.

    python tests/benchmarks/planted.py [--batches 50] [--only imprint noise traps]

An MLP 3072-K-10 is planted as the malicious server plants it; torch's autograd gives the gradient
of the mean cross-entropy of a batch, in float32, and the read-out sees that gradient alone. Figures
are the share of the batch's tiles that come back with PSNR above 30 (and 20) dB, after pairing,
means over batches with their standard errors.

Victims are non-overlapping 32x32 tiles of the six photographs; the server's own records are
overlapping crops, 10,000 or more, of other parts: "position" = squares of 96 pixels, in turn
victims' and the server's, in all photographs; "photograph" = other photographs. Expected: (1 -
1/K)^(B-1) for one imprint direction, otherwise by drawing batches of the server's own records.
"noise" adds Gaussian noise whose norm is 1 % of that of the whole gradient, over all parameters.
Normalised inputs have CIFAR's mean and deviation taken off; PSNR is computed after putting them
back.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.reconstruction.expected import share_by_peeling
from attacks.reconstruction.imprint import expected_share, read_imprints
from attacks.reconstruction.imprint_bins import fit_imprints
from attacks.reconstruction.metrics import pair, psnr
from attacks.reconstruction.planted import has_equal_signals, plant_rows
from attacks.reconstruction.weight_traps import fires, quantile_rows, read_traps, trap_rows
from simulations.data.builtin import photographs

Matrix = NDArray[np.float64]
SIDE, SQUARE, STEP = 32, 96, 5
MEAN = np.repeat([0.4914, 0.4822, 0.4465], SIDE * SIDE)
DEVIATION = np.repeat([0.2470, 0.2435, 0.2616], SIDE * SIDE)


@dataclass(frozen=True, eq=False)
class Split:
    """Victims (n, d), the server's own crops (m, d), and the photograph of each crop (m,)."""

    name: str
    victims: Matrix
    proxy: Matrix
    labels: NDArray[np.int64]


def crops(picture: NDArray[np.uint8], step: int) -> Matrix:
    """All crops at multiples of `step`, flattened, in [0, 1]."""
    whole = picture.astype(np.float64) / 255
    places = [
        (down, across)
        for down in range(0, picture.shape[0] - SIDE + 1, step)
        for across in range(0, picture.shape[1] - SIDE + 1, step)
    ]
    cut = [whole[d : d + SIDE, a : a + SIDE].transpose(2, 0, 1).ravel() for d, a in places]
    return np.array(cut).reshape(-1, 3 * SIDE * SIDE)


def by_position() -> Split:
    """Squares in turn, like a chessboard: victims' and the server's never overlap."""
    victims, proxy, labels = [], [], []
    for number, picture in enumerate(photographs()):
        for down in range(picture.shape[0] // SQUARE):
            for across in range(picture.shape[1] // SQUARE):
                top, left = down * SQUARE, across * SQUARE
                square = picture[top : top + SQUARE, left : left + SQUARE]
                if (down + across) % 2 == 0:
                    victims.append(crops(square, SIDE))
                else:
                    proxy.append(crops(square, STEP))
                    labels += [number] * len(proxy[-1])
    return Split(
        "position", np.concatenate(victims), np.concatenate(proxy), np.array(labels, np.int64)
    )


def by_photograph() -> Split:
    """Victims from photographs 0, 2 and 4, the server's from 1, 3 and 5."""
    pictures = photographs()
    proxy = [crops(pictures[number], STEP) for number in (1, 3, 5)]
    labels = np.repeat([1, 3, 5], [len(part) for part in proxy])
    victims = [crops(pictures[number], SIDE) for number in (0, 2, 4)]
    return Split("photograph", np.concatenate(victims), np.concatenate(proxy), labels)


def normalised(split: Split) -> Split:
    shifted = [(part - MEAN) / DEVIATION for part in (split.victims, split.proxy)]
    return Split(f"{split.name}, normalised", shifted[0], shifted[1], split.labels)


@dataclass(frozen=True, eq=False)
class Target:
    """A planted model 3072-K-10."""

    module: nn.Module
    rows: Matrix
    biases: Matrix
    equal: bool

    @classmethod
    def plant(cls, split: Split, rows: Matrix, biases: Matrix) -> Target:
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Linear(rows.shape[1], len(rows)), nn.ReLU(), nn.Linear(len(rows), 10)
        )
        arrays = {name: value.numpy() for name, value in module.state_dict().items()}
        sent = plant_rows(arrays, rows, biases, proxy=split.proxy[::20])
        module.load_state_dict({name: torch.from_numpy(value) for name, value in sent.items()})
        equal = has_equal_signals(sent, np.arange(len(rows)))
        weight, bias = (np.asarray(sent[n], dtype=np.float64) for n in ("0.weight", "0.bias"))
        return cls(module, weight, bias, equal)

    def sums(self, inputs: Matrix, noise: float, rng: np.random.Generator) -> Matrix:
        """(row, bias) gradients of a batch with random classes, shape (K, d + 1)."""
        labels = torch.from_numpy(rng.integers(10, size=len(inputs)))
        self.module.zero_grad()
        answers = self.module(torch.from_numpy(inputs.astype(np.float32)))
        nn.functional.cross_entropy(answers, labels).backward()  # type: ignore[no-untyped-call]
        parts = [p.grad.double().numpy() for p in self.module.parameters() if p.grad is not None]
        norm = float(np.sqrt(sum((part**2).sum() for part in parts)))
        exact = np.column_stack(parts[:2])
        each = noise * norm / np.sqrt(sum(part.size for part in parts))
        noisy: Matrix = exact + rng.normal(0, 1, exact.shape) * each
        return noisy


def measure(
    split: Split, target: Target, batch: int, *, imprint: bool, num: int, noise: float = 0.0
) -> str:
    """Shares recovered above 30 and 20 dB, in one line."""
    rng = np.random.default_rng(20_261_125)
    low, high = float(split.proxy.min()), float(split.proxy.max())
    bounds = (np.full(target.rows.shape[1], low), np.full(target.rows.shape[1], high))
    read = read_imprints if imprint else read_traps
    shares, seconds, claimed = [], 0.0, 0
    for _ in range(num):
        inputs = split.victims[rng.choice(len(split.victims), batch, replace=False)]
        sums = target.sums(inputs, noise, rng)
        rounding = (1e-6 * np.linalg.norm(sums, axis=1)) ** 2 / sums.shape[1]
        start = time.process_time()
        found = read(
            target.rows, target.biases, sums, rounding, bounds=bounds, equal=target.equal, rng=rng
        )
        seconds += time.process_time() - start
        records = found.records[np.argsort(-found.votes, kind="stable")[:batch]]
        claimed += len(records)
        if "normalised" in split.name:
            records, inputs = records * DEVIATION + MEAN, inputs * DEVIATION + MEAN
        peaks = np.zeros(0)
        if len(records):
            own, true = pair(records, inputs)
            peaks = np.array([psnr(records[a], inputs[b]) for a, b in zip(own, true, strict=True)])
        shares.append([(peaks > 30).sum() / batch, (peaks > 20).sum() / batch])
    mean, error = np.mean(shares, axis=0), np.std(shares, axis=0, ddof=1) / np.sqrt(num)
    return (
        f"> 30 dB {mean[0]:.3f} +- {error[0]:.3f}, > 20 dB {mean[1]:.3f}; "
        f"{claimed / num:.1f} claims; {seconds / num:.2f} s a batch"
    )


def imprint(
    split: Split, batch: int, bins: int, *, num: int, noise: float = 0.0, directions: int = 1
) -> None:
    rng = np.random.default_rng(0)
    fitted = fit_imprints(
        split.proxy,
        split.labels,
        bins // directions,
        input_shape=(3, SIDE, SIDE),
        directions=directions,
        rng=rng,
    )
    parts = [one.rows("cumulative") for one in fitted]
    rows, biases = np.vstack([r for r, _ in parts]), np.concatenate([b for _, b in parts])
    target = Target.plant(split, rows, biases)
    expected = expected_share(rows, biases, batch, split.proxy, equal=target.equal, rng=rng)
    line = measure(split, target, batch, imprint=True, num=num, noise=noise)
    print(
        f"imprint B={batch} K={bins} directions={directions} noise={noise:g} ({split.name}): "
        f"expected {expected:.3f}, {line}",
        flush=True,
    )


def traps(split: Split, kind: str, batch: int, rows: int, *, num: int, noise: float = 0.0) -> None:
    rng = np.random.default_rng(0)
    if kind == "trap weights":
        weights, biases = trap_rows(rows, split.proxy.shape[1], rng=rng)
    else:
        spread = kind == "quantile traps"
        weights, biases = quantile_rows(rows, split.proxy, batch, spread=spread, rng=rng)
    target = Target.plant(split, weights, biases)
    fired = fires(target.rows, target.biases, split.proxy[::4])
    expected = share_by_peeling(fired, batch, equal=target.equal, rng=rng)
    line = measure(split, target, batch, imprint=False, num=num, noise=noise)
    print(
        f"{kind} B={batch} rows={rows} noise={noise:g} ({split.name}): "
        f"expected {expected:.3f}, {line}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--only", nargs="+", default=["imprint", "noise", "traps"])
    given = parser.parse_args()
    num = given.batches
    for split in (by_position(), by_photograph()):
        print(f"{split.name}: {len(split.victims)} victims, {len(split.proxy)} own crops")
        if "imprint" in given.only:
            for batch, bins in ((8, 64), (64, 128), (64, 512)):
                imprint(split, batch, bins, num=num)
            for directions in (2, 4):
                imprint(split, 64, 128, num=num, directions=directions)
        if "noise" in given.only:
            imprint(split, 8, 64, num=num, noise=0.01)
            imprint(split, 8, 64, num=num, noise=0.1)
            traps(split, "quantile traps", 16, 500, num=num, noise=0.01)
        if "traps" not in given.only:
            continue
        for shown in (split, normalised(split)):
            for batch, rows in ((16, 500), (64, 1000)):
                fewer = num if batch == 16 else max(2, num // 2)
                for kind in ("quantile traps", "quantile traps as published", "trap weights"):
                    traps(shown, kind, batch, rows, num=fewer)


if __name__ == "__main__":
    main()

"""How well one example comes back through a dense first layer: three closed forms, with noise.

    python tests/benchmarks/linear_inversion.py

Real 32x32 tiles, MLP 3072-1024-10 with ReLU, one example a gradient, tiles and nets 0 to 19. First
exact gradients in float64 and float32, then Gaussian noise of equal deviation on every entry of
the first layer's gradient, whose norm is a share of that gradient's. Each line gives the mean PSNR
in dB of least squares over the rows, of the best rank-one fit (total least squares), and of the
row with the largest bias gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.reconstruction.linear import invert_linear
from attacks.reconstruction.metrics import psnr
from simulations.data.builtin import tiles

SEEDS = range(20)
NOISE = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def gradient(seed: int, dtype: torch.dtype) -> tuple[NDArray[np.float64], ...]:
    """A tile, and the first layer's gradient on it as float64."""
    records = tiles().records
    row = int(np.random.default_rng(seed).integers(len(records)))
    torch.manual_seed(seed)
    first = nn.Linear(3072, 1024)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(1024, 10)).to(dtype)
    example = records.inputs[row].reshape(1, -1)
    loss = nn.functional.cross_entropy(
        net(torch.from_numpy(example).to(dtype)), torch.tensor([int(records.labels[row])])
    )
    weight, bias = torch.autograd.grad(loss, [first.weight, first.bias])
    return example[0].astype(np.float64), weight.double().numpy(), bias.double().numpy()


def least_squares(weight: NDArray[np.float64], bias: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = weight.T @ bias / (bias @ bias)
    return result


def strongest_row(weight: NDArray[np.float64], bias: NDArray[np.float64]) -> NDArray[np.float64]:
    row = int(np.abs(bias).argmax())
    result: NDArray[np.float64] = weight[row] / bias[row]
    return result


def line(title: str, noise: float, dtype: torch.dtype) -> None:
    forms = (least_squares, invert_linear, strongest_row)
    found: list[list[float]] = [[], [], []]
    for seed in SEEDS:
        example, weight, bias = gradient(seed, dtype)
        rng = np.random.default_rng(seed)
        size = np.sqrt((weight**2).sum() + bias @ bias)
        std = noise * size / np.sqrt(weight.size + bias.size)
        weight = weight + rng.normal(0, 1, weight.shape) * std
        bias = bias + rng.normal(0, 1, bias.shape) * std
        for values, form in zip(found, forms, strict=True):
            values.append(psnr(form(weight, bias), example))
    text = ", ".join(
        f"{name} {np.mean(values):.1f}"
        for name, values in zip(("least squares", "rank one", "row"), found, strict=True)
    )
    print(f"{title}: {text} dB")


def main() -> None:
    line("float64", 0.0, torch.float64)
    line("float32", 0.0, torch.float32)
    for noise in NOISE:
        line(f"noise {noise:g} of the gradient's norm", noise, torch.float64)


if __name__ == "__main__":
    main()

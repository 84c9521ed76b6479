"""The GAN attack: a malicious client learns to draw a class that it does not own.

The global model of each round is the discriminator: a generator is trained until the model calls
its pictures the victim class. They go back into training under another label, so that the owners
of the victim class must teach the model what tells theirs from the forgeries, and the next
generator learns from that.

References:
    Hitaj, Ateniese, Pérez-Cruz, "Deep models under the GAN: information leakage from collaborative
    deep learning", CCS 2017, section 5. https://arxiv.org/abs/1702.07464
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_audit.errors import InputError
from fl_audit.files import Arrays
from fl_audit.trace.query import load_weights


class PictureGenerator(nn.Module):
    """From noise to inputs in [0, 1] of a given shape: one hidden layer, sigmoid at the end."""

    def __init__(self, input_shape: Sequence[int], *, noise: int, hidden: int) -> None:
        super().__init__()
        self.noise, self.shape = noise, tuple(input_shape)
        self.hidden_layer = nn.Linear(noise, hidden)
        self.output_layer = nn.Linear(hidden, prod(self.shape))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Shape (n, noise) to (n, *input shape)."""
        hidden = nn.functional.leaky_relu(self.hidden_layer(noise), 0.2)
        return torch.sigmoid(self.output_layer(hidden)).reshape(-1, *self.shape)


def new_generator(
    input_shape: Sequence[int], *, noise: int, hidden: int, generator: torch.Generator
) -> PictureGenerator:
    """An untrained generator; its weights depend on `generator` only."""
    with torch.random.fork_rng(devices=[]):  # the layers' own initialisation draws, unused
        net = PictureGenerator(input_shape, noise=noise, hidden=hidden)
    with torch.no_grad():
        for layer in (net.hidden_layer, net.output_layer):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.zero_()
    return net


def train_generator(
    net: PictureGenerator,
    discriminator: nn.Module,
    arrays: Arrays,
    *,
    victim_class: int,
    steps: int,
    batch: int,
    rate: float,
    smoothness: float,
    generator: torch.Generator,
) -> float:
    """Train `net` in place until the discriminator calls its pictures the victim class.

    The objective is the cross-entropy (nats) with the victim class, plus `smoothness` times the
    mean squared difference of neighbouring values along the last two axes.

    Args:
        discriminator: Architecture of the federation's model, evaluated in eval mode.
        arrays: Its weights.
        rate: Learning rate of Adam.

    Returns:
        The objective at the last step.

    Raises:
        InputError: If the model has no such class, or takes no inputs of the generator's shape.
    """
    load_weights(discriminator, arrays)
    discriminator.eval()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, betas=(0.5, 0.999))
    wanted = torch.full((batch,), victim_class)
    last = float("nan")
    for _ in range(steps):
        pictures = net(torch.randn(batch, net.noise, generator=generator))
        answers = _ask(discriminator, pictures, victim_class)
        loss = nn.functional.cross_entropy(answers, wanted) + smoothness * roughness(pictures)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        last = float(loss.detach())
    return last


def roughness(pictures: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbours along the last two axes (one axis for vectors)."""
    parts = [pictures.diff(dim=axis).square().mean() for axis in (-1, -2) if pictures.ndim > -axis]
    return torch.stack(parts).mean()


def generate(net: PictureGenerator, num: int, *, generator: torch.Generator) -> NDArray[np.float32]:
    """Inputs that the generator makes up, float32 in [0, 1], shape (num, *input shape)."""
    with torch.no_grad():
        pictures: NDArray[np.float32] = net(
            torch.randn(num, net.noise, generator=generator)
        ).numpy()
    return pictures


def _ask(discriminator: nn.Module, pictures: torch.Tensor, victim_class: int) -> torch.Tensor:
    try:
        answers: torch.Tensor = discriminator(pictures)
    except (RuntimeError, IndexError) as error:
        raise InputError(
            "input_shape",
            tuple(pictures.shape[1:]),
            f"the model refuses inputs of this shape ({error})",
            "Give the shape that the model was trained on.",
        ) from error
    if not 0 <= victim_class < answers.shape[1]:
        raise InputError(
            "victim_class",
            victim_class,
            f"the model has {answers.shape[1]} outputs",
            "Name a class that the model knows, counted from 0.",
        )
    return answers

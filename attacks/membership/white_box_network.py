"""The attack network: from a record's features to log-odds that it is a member.

Each feature has a component of its own; an encoder puts together what they find. They correct a
base: the log-odds from the first scalar feature alone (the loss, where it is used).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn

from attacks.membership.white_box_features import Features

_COMPONENT = 64  # numbers that a component hands to the encoder
_ENCODER = (256, 128, 64)
_CHANNELS = 8  # of the component over a gradient matrix
_DROPOUT = 0.2
_CLIP = 5.0  # standard deviations: an input of the network beyond them counts as them
_LEAST_DEVIATION = 1e-9  # a number that varies less keeps its unit
_LEAST_SLOPE = 0.1  # nats a standard deviation


class AttackNetwork(nn.Module):
    """Components of 64 numbers each, and an encoder 256-128-64-1 whose last layer starts at 0.

    Args:
        shapes: Of a record's features: (d,), or (out, k) for a layer's gradient.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.components = nn.ModuleList(_component(shape) for shape in shapes)
        width = _COMPONENT * len(shapes)
        layers: list[nn.Module] = []
        for following in _ENCODER:
            layers += [nn.Dropout(_DROPOUT), nn.Linear(width, following), nn.ReLU()]
            width = following
        last = nn.Linear(width, 1)
        self.encoder = nn.Sequential(*layers, last)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Conv1d):
                # torch's own initialisation lets a signal fade over six layers, and the first
                # epochs of a network that corrects nothing yet would be lost on bringing it back
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                assert part.bias is not None
                nn.init.zeros_(part.bias)
        nn.init.zeros_(last.weight)

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Features (n, *shape) each, to corrections (n,) in nats."""
        parts = [part(x) for part, x in zip(self.components, inputs, strict=True)]
        found: torch.Tensor = self.encoder(torch.cat(parts, 1))[:, 0]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Mean and deviation of each number, over the records that a network is trained on."""

    of_scalars: tuple[NDArray[Any], NDArray[Any]]
    of_blocks: dict[str, tuple[NDArray[Any], NDArray[Any]]]

    @staticmethod
    def of(features: Features) -> Scale:
        """From the training records."""
        blocks = {name: _moments(block) for name, block in features.blocks.items()}
        return Scale(_moments(features.scalars), blocks)

    def scalars(self, features: Features) -> NDArray[np.float64]:
        """(n, s), not clipped: the order of records is kept."""
        mean, deviation = self.of_scalars
        found: NDArray[np.float64] = (features.scalars - mean) / deviation
        return found

    def tensors(self, features: Features) -> list[torch.Tensor]:
        """What the network sees: the scalars and every block, clipped, float32."""
        parts: list[NDArray[Any]] = [
            (features.blocks[name] - mean) / deviation
            for name, (mean, deviation) in self.of_blocks.items()
        ]
        if features.scalars.shape[1]:
            parts.append(self.scalars(features))
        return [torch.from_numpy(np.clip(p, -_CLIP, _CLIP).astype(np.float32)) for p in parts]


@dataclass(frozen=True, slots=True)
class Base:
    """Log-odds from the first scalar feature: intercept + slope * its standardised value.

    The slope is positive whatever few records say: members do not have the higher loss or the
    larger gradients, and a reversed ranking is the one thing worse than a flat one.
    """

    slope: float = 0.0
    intercept: float = 0.0

    @staticmethod
    def of(scalars: NDArray[np.float64], is_member: NDArray[np.bool_]) -> Base:
        """Fitted to standardised scalars, (n, s); nothing where there are none."""
        if not scalars.shape[1]:
            return Base()
        fitted = LogisticRegression().fit(scalars[:, :1], is_member)
        slope = max(float(fitted.coef_[0, 0]), _LEAST_SLOPE)
        return Base(slope, float(fitted.intercept_[0]))

    def __call__(self, scalars: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of standardised scalars (n, s), in nats, (n,)."""
        found: NDArray[np.float64] = self.intercept + self.slope * scalars[:, :1].sum(axis=1)
        return found


def _component(shape: tuple[int, ...]) -> nn.Module:
    """(n, d) or (n, out, k) to (n, 64)."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], _COMPONENT), nn.ReLU())
    outputs, inputs = shape
    return nn.Sequential(
        nn.Conv1d(outputs, _CHANNELS, 1),  # spans all outputs, and reads every input alike
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(_DROPOUT),
        nn.Linear(_CHANNELS * inputs, _COMPONENT),
        nn.ReLU(),
    )


def _moments(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    deviation = values.std(axis=0, dtype=np.float64)
    deviation = np.where(deviation > _LEAST_DEVIATION, deviation, 1)
    return values.mean(axis=0, dtype=np.float64).astype(values.dtype), deviation.astype(
        values.dtype
    )

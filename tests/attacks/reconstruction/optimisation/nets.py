"""Small nets in float64, and what a client would send for a batch: plain torch, as the oracle."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.objectives import build_objective
from attacks.reconstruction.optimisation.problem import Problem
from attacks.reconstruction.optimisation.simulation import OneGradient

Tensor = torch.Tensor
SEED = 20_261_125


def generator(seed: int = SEED) -> torch.Generator:
    """A fresh stream."""
    return torch.Generator().manual_seed(seed)


def drawn(model: torch.nn.Module, std: float = 0.7) -> torch.nn.Module:
    """The model in float64, with weights from the seed."""
    stream, model = generator(), model.double()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
        parameter.data = std * noise
    return model


def dense(width: int = 8) -> torch.nn.Module:
    """Twelve inputs, one hidden layer of sigmoids, three classes."""
    hidden = [torch.nn.Linear(12, width), torch.nn.Sigmoid()]
    return drawn(torch.nn.Sequential(*hidden, torch.nn.Linear(width, 3)))


def convolutional() -> torch.nn.Module:
    """Pictures of (1, 6, 6): one convolution, tanh, two classes."""
    return drawn(
        torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1),
            torch.nn.Tanh(),
            torch.nn.Flatten(),
            torch.nn.Linear(144, 2),
        )
    )


def normalised() -> torch.nn.Module:
    """Pictures of (1, 4, 4), with BatchNorm in training mode between two convolutions."""
    return drawn(
        torch.nn.Sequential(
            torch.nn.Conv2d(1, 3, 3, stride=2, padding=1),
            torch.nn.BatchNorm2d(3),
            torch.nn.Tanh(),
            torch.nn.Flatten(),
            torch.nn.Linear(12, 6),
            torch.nn.BatchNorm1d(6),
            torch.nn.Tanh(),
            torch.nn.Linear(6, 2),
        )
    )


def batch(size: int, *shape: int, seed: int = SEED) -> Tensor:
    """Inputs in [0, 1]."""
    return torch.rand(size, *shape, generator=generator(seed), dtype=torch.float64)


def gradient(model: torch.nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of the mean cross-entropy, by name."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def flat(values: Mapping[str, Tensor]) -> Tensor:
    """Side by side."""
    return torch.cat([value.reshape(-1) for value in values.values()])


def problem_of(
    model: torch.nn.Module, inputs: Tensor, labels: Tensor, config: InversionConfig
) -> Problem:
    """The search for a batch whose gradient was seen."""
    seen = gradient(model, inputs, labels)
    objective = build_objective(config, seen, tuple(seen))
    return Problem([(OneGradient(model, tuple(seen)), objective)], labels, config)

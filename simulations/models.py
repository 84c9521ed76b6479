"""Built-in architectures. Each is a factory that takes what its data set dictates.

Weights are drawn by `seeded`, so that no factory touches torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Literal

import torch
from torch import nn

from fl_audit.errors import InputError, UnknownNameError
from fl_audit.factories import BUILT_IN, ModelSpec
from simulations.data import Dataset
from simulations.scenario import Model


def mlp(
    *, input_shape: Sequence[int], num_classes: int, hidden: Sequence[int] = (128,)
) -> nn.Module:
    """Fully connected layers with ReLU between them."""
    sizes = [prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


def lenet_zhu(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    initialisation: Literal["default", "reference"] = "default",
) -> nn.Module:
    """The small sigmoid LeNet of gradient-inversion papers: three 5x5 convolutions, one linear.

    `initialisation="reference"` draws weights and biases uniformly from ±0.5.

    References:
        Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019.
    """
    if len(input_shape) != 3:
        raise InputError(
            "model.name",
            "lenet_zhu",
            f"it needs images, the inputs have shape {input_shape}",
            "Use the model 'mlp', or a data set of images.",
        )
    channels, height, width = input_shape
    size = [-(-side // 4) for side in (height, width)]  # strides 2, 2, 1 with padding 2
    model = nn.Sequential(
        nn.Conv2d(channels, 12, 5, stride=2, padding=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, stride=2, padding=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, stride=1, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(12 * size[0] * size[1], num_classes),
    )
    if initialisation == "reference":
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "lenet_zhu": lenet_zhu}


def model_spec(model: Model, dataset: Dataset) -> ModelSpec:
    """The factory and settings of a scenario's model on its data set.

    Raises:
        UnknownNameError: If it is neither a built-in name nor "module:function".
        InputError: If the factory refuses its settings.
    """
    if ":" in model.name:
        factory = model.name
    elif model.name in MODELS:
        factory = f"{BUILT_IN}:{model.name}"
    else:
        raise UnknownNameError("model", model.name, MODELS)
    spec = ModelSpec(
        factory=factory,
        settings={
            "input_shape": list(dataset.input_shape),
            "num_classes": dataset.num_classes,
            **model.settings,
        },
    )
    try:
        seeded(spec, seed=0)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "model",
            model.model_dump(),
            f"the factory refuses these settings ({error})",
            "See the arguments of its function in simulations/models.py, or of your own.",
        ) from error
    return spec


def seeded(spec: ModelSpec, *, seed: int) -> nn.Module:
    """Build a model with weights that depend on `seed` only; global generators stay untouched."""
    build = spec.builder(trusted=True)  # a scenario's author names this code
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        module = build()
    if not isinstance(module, nn.Module):
        raise InputError(
            "model.factory",
            spec.factory,
            f"returned {type(module).__name__}, not a torch module",
            "Return an instance of torch.nn.Module.",
        )
    return module

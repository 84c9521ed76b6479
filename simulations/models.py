"""Built-in architectures. Each is a factory that takes what its data set dictates.

Weights are drawn by `seeded`, which leaves the process's own generators as they were.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Literal, get_args

import torch
from torch import nn

from fl_audit.errors import InputError, UnknownNameError, did_you_mean
from fl_audit.factories import BUILT_IN, ModelSpec, load_attribute
from simulations.data import Dataset
from simulations.global_generators import seeded_globals
from simulations.imprint_model import Activation, ImprintFirst
from simulations.scenario import Model
from simulations.text_models import TokenTransformer

_GROUPS = 8  # of GroupNorm in ResNets: divides every width
_Norm = Literal["group", "batch"]
_Initialisation = Literal["default", "reference"]


def mlp(
    *, input_shape: Sequence[int], num_classes: int, hidden: Sequence[int] = (128,)
) -> nn.Module:
    """Fully connected layers with ReLU between them."""
    _refuse_small("hidden", *hidden)
    sizes = [prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


def lenet_zhu(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    initialisation: _Initialisation = "default",
) -> nn.Module:
    """The small sigmoid LeNet of gradient-inversion papers: three 5x5 convolutions, one linear.

    `initialisation="reference"` draws weights and biases uniformly from ±0.5.

    References:
        Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019.
    """
    channels, height, width = _image_shape("lenet_zhu", input_shape)
    if initialisation not in get_args(_Initialisation):
        raise UnknownNameError("initialisation", initialisation, get_args(_Initialisation))
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


def convnet(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    width: int = 32,
    groups: int = 8,
    norm: _Norm = "group",
) -> nn.Module:
    """Two 3x3 convolutions with normalisation, ReLU and pooling, and a linear layer.

    `norm="batch"` is BatchNorm: its statistics travel with the model, and are averaged like it.
    """
    if norm not in get_args(_Norm):
        raise UnknownNameError("norm", norm, get_args(_Norm))
    channels, height, width_in = _image_shape("convnet", input_shape)
    _refuse_small("width", width)
    _refuse_small("groups", groups)
    layers: list[nn.Module] = []
    for out in (width, 2 * width):
        layers += [
            nn.Conv2d(channels, out, 3, padding=1),
            nn.GroupNorm(groups, out) if norm == "group" else nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels = out
    size = (height // 4) * (width_in // 4)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size, num_classes))


def resnet8(*, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The CIFAR ResNet with one block a stage, GroupNorm in place of BatchNorm."""
    return _cifar_resnet(_image_shape("resnet8", input_shape)[0], num_classes, blocks=1)


def resnet20(*, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The CIFAR ResNet with three blocks a stage, GroupNorm in place of BatchNorm.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
    """
    return _cifar_resnet(_image_shape("resnet20", input_shape)[0], num_classes, blocks=3)


def resnet18(*, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """ResNet-18 for small images: 3x3 stem, two blocks a stage, GroupNorm; 11.2 M parameters."""
    channels = _image_shape("resnet18", input_shape)[0]
    return _cifar_resnet(channels, num_classes, blocks=2, widths=(64, 128, 256, 512))


def transformer(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    vocabulary: int = 8002,
    width: int = 256,
    heads: int = 4,
    layers: int = 2,
    causal: bool = True,
) -> nn.Module:
    """A pre-LN transformer on sequences of tokens, padded by token 0, without dropout.

    `vocabulary` counts all tokens, those for padding and unknown words among them. With
    `causal=False`, tokens attend to those behind them, too.
    """
    if len(input_shape) != 1:
        raise InputError(
            "model.name",
            "transformer",
            f"it needs sequences of tokens, the inputs have shape {list(input_shape)}",
            "Use data with a column of text, or of token numbers.",
        )
    return TokenTransformer(
        vocabulary=vocabulary,
        length=input_shape[0],
        num_classes=num_classes,
        width=width,
        heads=heads,
        layers=layers,
        causal=causal,
    )


def imprint(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    inner: str = "convnet",
    rows: int = 64,
    activation: Activation = "relu",
) -> nn.Module:
    """A dense block with room for imprint rows in front of another built-in model."""
    _refuse_small("rows", rows)
    if inner not in MODELS:
        raise UnknownNameError("inner model", inner, MODELS)
    behind = MODELS[inner](input_shape=input_shape, num_classes=num_classes)
    return ImprintFirst(behind, input_shape=input_shape, rows=rows, activation=activation)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet_zhu": lenet_zhu,
    "convnet": convnet,
    "imprint": imprint,
    "resnet8": resnet8,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "transformer": transformer,
}


def model_spec(model: Model, dataset: Dataset) -> ModelSpec:
    """The factory and settings of a scenario's model on its data set.

    Raises:
        UnknownNameError: If it is neither a built-in name nor "module:function".
        InputError: If the factory refuses its settings, or the model does not fit the data set.
    """
    if ":" in model.name:
        factory = model.name
    elif model.name in MODELS:
        factory = f"{BUILT_IN}:{model.name}"
    else:
        raise UnknownNameError("model", model.name, MODELS)
    dictated = {"input_shape": list(dataset.input_shape), "num_classes": dataset.num_classes}
    for name in dictated.keys() & model.settings.keys():
        raise InputError(
            f"model.{name}",
            model.settings[name],
            f"the data set decides it: {dictated[name]}",
            f"Leave model.{name} out.",
        )
    spec = ModelSpec(factory=factory, settings={**dictated, **model.settings})
    _refuse_unknown_settings(spec, model)
    try:
        module = seeded(spec, seed=0)
    except InputError:
        raise
    except Exception as error:  # users' code raises anything
        raise InputError(
            "model",
            model.model_dump(),
            f"the factory refuses these settings ({type(error).__name__}: {error})",
            "See the arguments of its function in simulations/models.py, or of your own.",
        ) from error
    _refuse_misfit(module, model, dataset)
    return spec


def _refuse_misfit(module: nn.Module, model: Model, dataset: Dataset) -> None:
    """Try the model on one record: what does not fit would otherwise fail in the first round."""
    record = torch.from_numpy(dataset.records.inputs[:1])
    try:
        with seeded_globals(0), torch.no_grad():
            outputs = module.eval()(record)  # a layer of batch statistics trains on no single one
    except Exception as error:  # users' code raises anything
        raise InputError(
            "model",
            model.model_dump(),
            f"it takes no records of shape {list(record.shape[1:])} "
            f"({type(error).__name__}: {error})",
            "Change its settings, or build it for the input_shape that its factory is given.",
        ) from error
    wanted = [1, dataset.num_classes]
    found = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if found != wanted:
        raise InputError(
            "model",
            model.model_dump(),
            f"for one record of {dataset.num_classes} classes it gives {found}, not {wanted}",
            "Give logits: one a class, for the num_classes that its factory is given.",
        )


def _refuse_unknown_settings(spec: ModelSpec, model: Model) -> None:
    function = load_attribute(spec.factory, "model.name")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # no signature to look at: the call itself will tell
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name, value in model.settings.items():
        if name not in parameters:
            raise InputError(
                f"model.{name}",
                value,
                f"model {model.name!r} has no such setting",
                f"{did_you_mean(name, parameters)}It takes: {', '.join(parameters)}",
            )


def seeded(spec: ModelSpec, *, seed: int) -> nn.Module:
    """Build a model with weights that depend on `seed` only; global generators stay untouched."""
    build = spec.builder(trusted=True)  # a scenario's author names this code
    with seeded_globals(seed):
        module = build()
    if not isinstance(module, nn.Module):
        raise InputError(
            "model.factory",
            spec.factory,
            f"returned {type(module).__name__}, not a torch module",
            "Return an instance of torch.nn.Module.",
        )
    return module


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where sizes differ."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(_GROUPS, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.GroupNorm(_GROUPS, out)
            )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm1(self.conv1(inputs)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


def _cifar_resnet(
    channels: int, num_classes: int, *, blocks: int, widths: Sequence[int] = (16, 32, 64)
) -> nn.Module:
    width = widths[0]
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, width),
        nn.ReLU(),
    ]
    for out in widths:
        for number in range(blocks):
            stride = 2 if number == 0 and out != widths[0] else 1
            layers.append(_Block(width, out, stride))
            width = out
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )


def _image_shape(name: str, input_shape: Sequence[int]) -> Sequence[int]:
    if len(input_shape) != 3:
        raise InputError(
            "model.name",
            name,
            f"it needs images, the inputs have shape {list(input_shape)}",
            "Use the model 'mlp', or a data set of images.",
        )
    return input_shape


def _refuse_small(name: str, *values: int) -> None:
    for value in values:
        if isinstance(value, int) and value < 1:  # torch refuses what is no whole number
            raise InputError(
                f"model.{name}", value, "must be at least 1", "Give a number of 1 or more."
            )

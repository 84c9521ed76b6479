"""The last layer of a classifier: found by the model's own order, and its gradient checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_audit.errors import InputError

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LastLayer:
    """The dense layer that gives the logits.

    Attributes:
        module: Its name in the model; "" if the layer is the whole model.
        weight: Name of its weight, shape (classes, features).
        bias: Name of its bias, shape (classes,), or None.
        classes: Number of logits.
    """

    module: str
    weight: str
    bias: str | None
    classes: int


def last_layer(model: torch.nn.Module) -> LastLayer:
    """The layer that the model's last parameter belongs to.

    Raises:
        InputError: If it is not a dense layer with two outputs or more.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    last = next(reversed(shapes), "")
    module, _, kind = last.rpartition(".")
    weight = _joined(module, "weight")
    bias = last if kind == "bias" else None
    shape = shapes.get(weight, ())
    is_last = last in (weight, bias) and len(shape) == 2
    if not is_last or shape[0] < 2 or (bias is not None and shapes[bias] != shape[:1]):
        raise InputError(
            "model",
            {last: shapes.get(last)},
            "its last parameter is not that of a dense layer with an output for each class",
            "Labels are read from the last layer's gradient: give a classifier that ends in one.",
        )
    return LastLayer(module, weight, bias, shape[0])


def check_gradients(model: torch.nn.Module, gradients: Mapping[str, Any]) -> None:
    """Refuse gradients that are not this model's. Parameters may be missing, and in any order.

    Raises:
        InputError: Naming the first parameter that does not fit, in the model's order.
    """
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    buffers = {name for name, _ in model.named_buffers()}
    for name, shape in wanted.items():
        if name in gradients and tuple(np.shape(gradients[name])) != shape:
            raise InputError(
                f"gradients[{name!r}]",
                tuple(np.shape(gradients[name])),
                f"the model's parameter has shape {shape}",
                "Give the gradients of this model.",
            )
    for name in gradients:
        if name not in wanted and name not in buffers:
            raise InputError(
                f"gradients[{name!r}]",
                tuple(np.shape(gradients[name])),
                "the model has no such parameter",
                f"It has: {', '.join(wanted)}.",
            )


def values_of(gradients: Mapping[str, Any], name: str) -> Values:
    """One gradient in float64, from an array or a tensor.

    Raises:
        InputError: If it is not there, or not finite.
    """
    if name not in gradients:
        raise InputError(
            f"gradients[{name!r}]",
            None,
            "is not there, and labels cannot be read without it",
            "Give the gradients of all parameters.",
        )
    value = gradients[name]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    found = np.asarray(value, dtype=np.float64)
    if not np.isfinite(found).all():
        raise InputError(
            f"gradients[{name!r}]", "NaN or infinity", "must be finite", "Leave this update out."
        )
    return found


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name

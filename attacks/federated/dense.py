"""Dense layers of a model: found from array names and shapes alone, and what they see."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError

if TYPE_CHECKING:
    import torch

_SUFFIX = "weight"


def first_dense_layer(
    arrays: Mapping[str, NDArray[np.generic]], input_shape: tuple[int, ...] | None = None
) -> tuple[str, str | None]:
    """Names of the weight and bias of the dense layer that sees the inputs themselves.

    Args:
        arrays: A model's arrays by name, in the model's order.
        input_shape: Shape of one input, if known; checked against the layer.

    Returns:
        (weight name, bias name or None if the layer has no bias).

    Raises:
        InputError: If the model's first layer is not a dense layer on the flattened input.
    """
    shapes = {name: tuple(arrays[name].shape) for name in arrays}
    weights = [n for n, shape in shapes.items() if n.endswith(_SUFFIX) and len(shape) >= 2]
    first = shapes[weights[0]] if weights else ()
    if len(first) == 2 and (input_shape is None or first[1] == prod(input_shape)):
        return weights[0], _bias_of(weights[0], shapes)
    dense = [name for name in weights if len(shapes[name]) == 2]
    raise InputError(
        "model",
        {name: shapes[name] for name in weights[:1]},
        "its first layer is not a dense layer on the whole input"
        + (f" of shape {input_shape}" if input_shape else ""),
        "Use a model that starts with a dense layer. Dense layers further in, exact for one local "
        f"step where the attack has a setting `layer`: {', '.join(dense) or 'none'}.",
    )


def dense_layer(arrays: Mapping[str, NDArray[np.generic]], layer: str) -> tuple[str, str | None]:
    """Names of the weight and bias of a dense layer that is named by its weight.

    Raises:
        InputError: If there is no such array, or it is no matrix.
    """
    shapes = {name: tuple(arrays[name].shape) for name in arrays}
    if len(shapes.get(layer, ())) != 2 or not layer.endswith(_SUFFIX):
        dense = [n for n, shape in shapes.items() if n.endswith(_SUFFIX) and len(shape) == 2]
        raise InputError(
            "layer",
            layer,
            "is not the weight of a dense layer of this model",
            f"Dense layers: {', '.join(dense) or 'none'}.",
        )
    return layer, _bias_of(layer, shapes)


def layer_inputs(
    module: torch.nn.Module,
    arrays: Mapping[str, NDArray[np.generic]],
    layer: str,
    inputs: NDArray[np.float32],
) -> NDArray[np.float64]:
    """What a dense layer sees of each record in the model with these weights, shape (n, in).

    The model is in eval mode: dropout is off, and batch norm uses what is recorded.

    Raises:
        InputError: If the layer is never called, or sees several vectors of a record.
    """
    import torch

    from fl_audit.trace.query import logits  # torch is not needed to find a layer

    seen: list[torch.Tensor] = []

    def keep(_module: Any, given: tuple[Any, ...]) -> None:
        seen.append(given[0].detach())

    named = dict(module.named_modules()).get(layer.removesuffix(f".{_SUFFIX}"))
    if named is not None:
        with_hook = named.register_forward_pre_hook(keep)
        try:
            logits(module, arrays, np.asarray(inputs))
        finally:
            with_hook.remove()
    if sum(len(part) for part in seen) != len(inputs) or any(part.ndim != 2 for part in seen):
        raise InputError(
            "layer",
            layer,
            "does not see one vector of each record",
            "Name a dense layer that is applied once to each record, such as the last one.",
        )
    return torch.cat(seen).double().cpu().numpy()


def _bias_of(weight: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    bias = weight.removesuffix(_SUFFIX) + "bias"
    return bias if bias in shapes else None

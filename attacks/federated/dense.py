"""The first dense layer of a model, found from array names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError

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
        bias = weights[0].removesuffix(_SUFFIX) + "bias"
        return weights[0], bias if bias in shapes else None
    dense = [name for name in weights if len(shapes[name]) == 2]
    raise InputError(
        "model",
        {name: shapes[name] for name in weights[:1]},
        "its first layer is not a dense layer on the whole input"
        + (f" of shape {input_shape}" if input_shape else ""),
        f"Use a model that starts with a dense layer. Dense layers further in: {dense or 'none'}.",
    )

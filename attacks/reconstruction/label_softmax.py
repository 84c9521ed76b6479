"""What a model answers to records like the batch's, or to noise in their place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from attacks.reconstruction.label_layer import LastLayer
from fl_audit.errors import InputError

Values = NDArray[np.float64]
_CHUNK = 256  # records that go through the model at once
_COARSE = 4  # side of the grid of random colours that noise pictures are made of


def answers(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    layer: LastLayer,
    *,
    batch: int,
) -> tuple[Values, Values | None]:
    """Softmax of the inputs, and the features that the last layer sees. Dropout is off.

    In training mode layers of batch statistics take those of `batch` inputs at a time; otherwise
    they use what is recorded. The model is left as it is.

    Returns:
        Shapes (n, classes) and (n, features); the second is None where the layer does not see one
        vector of each record. n is less than `len(inputs)` where the last batch would not be
        full.

    Raises:
        InputError: If the model refuses the inputs, or its answers are no logits.
    """
    own = without_dropout(model)
    is_joint = model.training and has_batch_norm(model)
    size = min(batch, len(inputs)) if is_joint else _CHUNK
    whole = len(inputs) // size * size if is_joint else len(inputs)  # a smaller batch is another
    seen: list[torch.Tensor] = []
    hook = own.get_submodule(layer.module).register_forward_pre_hook(
        lambda _module, given: seen.append(given[0].detach())
    )
    try:
        with torch.no_grad():
            parts = [own(inputs[i : i + size]) for i in range(0, whole, size)]
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise InputError(
            "proxy inputs",
            tuple(inputs.shape),
            f"the model refuses inputs of this shape ({error})",
            "Give inputs of the shape that it was trained on.",
        ) from error
    finally:
        hook.remove()
    logits = torch.cat(parts).double().cpu().numpy()
    if logits.shape != (whole, layer.classes) or not np.isfinite(logits).all():
        raise InputError(
            "model",
            logits.shape,
            f"for {whole} inputs it does not give finite logits of shape {(whole, layer.classes)}",
            "Give a classifier whose last parameter makes its logits.",
        )
    return softmax(logits, axis=1), _features(seen, whole)


def noise_inputs(
    input_shape: Sequence[int], number: int, *, generator: torch.Generator
) -> torch.Tensor:
    """Stand-ins for records in [0, 1]: pictures of random colours without edges, else uniform.

    Nets answer to smooth pictures more as they do to photographs than to noise in each pixel.

    Args:
        input_shape: Of one input; three numbers are (channels, height, width).
    """
    shape = tuple(input_shape)
    if not shape or prod(shape) < 1:
        raise InputError("input_shape", shape, "has no values", "Give the shape of one input.")
    if len(shape) != 3:
        return torch.rand((number, *shape), generator=generator)
    grid = torch.rand((number, shape[0], _COARSE, _COARSE), generator=generator)
    size = (shape[1], shape[2])
    return torch.nn.functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in which only layers of batch statistics are in training mode, if the model is."""
    own = copy.deepcopy(model).eval()
    for module in own.modules():
        if model.training and is_batch_norm(module):
            module.train()
    return own


def is_batch_norm(module: torch.nn.Module) -> bool:
    """Whether a layer's answers to one record depend on the others in the batch."""
    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm)


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Whether any layer of the model is one of batch statistics."""
    return any(is_batch_norm(module) for module in model.modules())


def _features(seen: Sequence[torch.Tensor], expected: int) -> Values | None:
    if sum(len(part) for part in seen) != expected or any(part.ndim != 2 for part in seen):
        return None
    found: Values = torch.cat(list(seen)).double().cpu().numpy()
    return found

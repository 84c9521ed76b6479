"""Checks before anything is searched: does the gradient belong to this model and these inputs?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fl_audit.errors import InputError

Tensor = torch.Tensor


def gradient_tensors(
    model: torch.nn.Module, gradients: Mapping[str, Any], like: Tensor
) -> dict[str, Tensor]:
    """The observed gradient in the model's order, checked.

    Args:
        gradients: Arrays or tensors by parameter name; buffers and parameters that are not trained
            may be among them, and are left out.
        like: Dtype and device.

    Raises:
        InputError: Naming the first parameter that is missing, has another shape, or is not finite,
            or else the first name that is not in the model.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        value = gradients.get(name)
        shape = None if value is None else tuple(value.shape)
        if value is None or shape != tuple(parameter.shape):
            raise InputError(
                f"gradient of {name!r}",
                shape,
                f"the model needs shape {tuple(parameter.shape)}"
                if value is not None
                else f"it is missing; the gradients given are of {list(gradients)[:6]}",
                "Name the model factory (and settings) that the update belongs to.",
            )
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"gradient of {name!r}",
                "NaN or infinity",
                "must be finite",
                "Leave this update out.",
            )
        found[name] = tensor.detach().to(like)
    # weights that layers share have a name in each
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for name in gradients:
        if name not in known:
            raise InputError(
                f"gradient of {name!r}",
                tuple(np.shape(gradients[name])),
                "the model has neither a parameter nor a buffer of this name",
                "Name the model factory (and settings) that the update belongs to.",
            )
    return found


def check_inputs_fit(
    model: torch.nn.Module, input_shape: Sequence[int], batch_size: int, like: Tensor
) -> int:
    """Number of classes that the model answers with for inputs of this shape.

    Raises:
        InputError: If the model refuses them, or its answer is no row of logits for each.
    """
    try:
        with torch.no_grad():
            answer = model(torch.zeros(batch_size, *input_shape).to(like))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise InputError(
            "input_shape",
            tuple(input_shape),
            f"the model refuses {batch_size} inputs of this shape ({error})",
            "Give the shape of one input, without the batch: (3, 32, 32).",
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != batch_size:
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise InputError(
            "model",
            shape,
            f"for {batch_size} inputs it must answer with logits ({batch_size}, classes)",
            "Wrap it in a module that returns logits.",
        )
    return int(answer.shape[1])


def check_pictures(total_variation: float, input_shape: Sequence[int]) -> None:
    """Refuse total variation for inputs that have no pixels beside and below each other.

    Raises:
        InputError: With the shape.
    """
    if total_variation and (len(input_shape) != 3 or min(input_shape[1:]) < 2):
        raise InputError(
            "total_variation",
            total_variation,
            f"inputs of shape {tuple(input_shape)} are no pictures: they have no neighbours",
            "Set total_variation = 0.",
        )


def check_proxies(proxies: Tensor | None, input_shape: Sequence[int]) -> None:
    """Refuse proxies that are not like the inputs.

    Raises:
        InputError: If there are none, they have another shape, or a value is not finite.
    """
    if proxies is None:
        return
    if len(proxies) == 0 or tuple(proxies.shape[1:]) != tuple(input_shape):
        raise InputError(
            "proxies",
            tuple(proxies.shape),
            f"must hold one input or more of shape {tuple(input_shape)}",
            "Give inputs like the client's, or none.",
        )
    if not bool(torch.isfinite(proxies).all()):
        raise InputError("proxies", "NaN or infinity", "must be finite", "Leave such inputs out.")


def check_batch_size(batch_size: Any) -> None:
    """Refuse what is no number of inputs; None: not known.

    Raises:
        InputError: With the value.
    """
    is_whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
    if batch_size is not None and not (is_whole and batch_size >= 1):
        raise InputError(
            "batch_size",
            batch_size,
            "must be a whole number, at least 1",
            "Leave it out if it is not known.",
        )


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that the model has no output for.

    Raises:
        InputError: Naming the first.
    """
    bad = labels[(labels < 0) | (labels >= num_classes)]
    if labels.ndim != 1 or len(labels) == 0 or len(bad):
        raise InputError(
            "labels",
            int(bad[0]) if len(bad) else tuple(labels.shape),
            f"must be one class for each input, from 0 to {num_classes - 1}",
            "Give labels of shape (b,).",
        )

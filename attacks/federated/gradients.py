"""Per-example gradients of the global model, batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call, grad, vmap

from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.trace.query import load_weights

_ELEMENTS = 32_000_000  # float32 elements of per-example gradients held at once: 128 MB

Gradients = dict[str, torch.Tensor]


def per_example_gradients(
    module: torch.nn.Module,
    arrays: Mapping[str, NDArray[np.generic]],
    records: Records,
    *,
    device: str = "cpu",
) -> Iterator[tuple[slice, Gradients]]:
    """Gradients of the cross-entropy of each record, a block of records at a time.

    Args:
        module: The architecture; evaluated in eval mode.
        arrays: Weights to take the gradient at.
        records: n labelled records.

    Yields:
        (rows, gradients by parameter name, each of shape (rows, *parameter shape)).

    Raises:
        InputError: If the records do not fit the model, or a label has no output.
    """
    load_weights(module, arrays)
    module.to(device).eval()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    buffers = {name: b.detach() for name, b in module.named_buffers()}
    size = sum(p.numel() for p in parameters.values())
    block = max(1, min(len(records), _ELEMENTS // max(1, size)))
    if len(records):
        check_labels(records, _num_outputs(module, records, device))
    function = _gradient_function(module, parameters, buffers)
    for start in range(0, len(records), block):
        rows = slice(start, min(start + block, len(records)))
        inputs = torch.from_numpy(records.inputs[rows]).to(device)
        labels = torch.from_numpy(records.labels[rows]).to(device)
        yield rows, function(inputs, labels)


def check_labels(records: Records, num_outputs: int) -> None:
    """Refuse labels that the model has no output for.

    Raises:
        InputError: Naming the first.
    """
    outside = records.labels[(records.labels < 0) | (records.labels >= num_outputs)]
    if outside.size:
        raise InputError(
            "candidates' label",
            int(outside[0]),
            f"the model has {num_outputs} outputs",
            "Give the classes that the model was trained on, counted from 0.",
        )


def _num_outputs(module: torch.nn.Module, records: Records, device: str) -> int:
    """How many classes the model answers with; also whether it takes such inputs at all."""
    try:
        with torch.no_grad():
            answer = module(torch.from_numpy(records.inputs[:1]).to(device))
    except (RuntimeError, IndexError) as error:
        raise InputError(
            "candidates",
            records.inputs.shape,
            f"the model refuses inputs of this shape ({error})",
            "Give records of the shape that the model was trained on.",
        ) from error
    return int(answer.shape[-1])


def _gradient_function(
    module: torch.nn.Module, parameters: Gradients, buffers: Gradients
) -> Callable[[torch.Tensor, torch.Tensor], Gradients]:
    def loss(weights: Gradients, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = functional_call(module, {**weights, **buffers}, (x.unsqueeze(0),))
        return torch.nn.functional.cross_entropy(output, y.unsqueeze(0))

    each: Any = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda inputs, labels: each(parameters, inputs, labels)

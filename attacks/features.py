"""Features of a model: what its last dense layer receives, for the distance of reconstructions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_audit.errors import InputError
from fl_audit.trace import TraceView
from fl_audit.trace.query import load_weights

Features = Callable[[int, NDArray[np.float64]], NDArray[np.float64]]
"""Penultimate features, shape (n, f), of inputs (n, ...) in the global model of a round."""
_BATCH = 512


def penultimate(module: nn.Module, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the last dense layer receives in eval mode, shape (n, f).

    Raises:
        InputError: If there is none, or it is the first layer too: its input is the record itself.
    """
    layers = [part for part in module.modules() if sum(1 for _ in part.parameters(recurse=False))]
    dense = [part for part in layers if isinstance(part, nn.Linear)]
    if not dense or layers[0] is dense[-1]:
        raise InputError(
            "model",
            type(module).__name__,
            "it has no dense layer behind another layer, so there are no features",
            "Use another measure.",
        )
    seen: list[torch.Tensor] = []
    hook = dense[-1].register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    module.eval()
    parameter = next(module.parameters())
    try:
        with torch.no_grad():
            for start in range(0, len(inputs), _BATCH):
                batch = torch.from_numpy(inputs[start : start + _BATCH])
                module(batch.to(parameter.device, parameter.dtype))
    finally:
        hook.remove()
    parts = [part.reshape(len(part), -1).double().cpu().numpy() for part in seen]
    found: NDArray[np.float64] = np.concatenate(parts)
    return found


def round_features(view: TraceView) -> Features:
    """Features of the global models that a view grants.

    Raises, when called:
        ObservationError, InputError: If the view does not grant the model, or nobody knows it.
    """
    module: nn.Module | None = None
    loaded: int | None = None

    def features(server_round: int, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal module, loaded
        module = view.architecture() if module is None else module
        if server_round != loaded:
            load_weights(module, view.global_model(server_round))
            loaded = server_round
        return penultimate(module, inputs)

    return features

"""Asking a model for its logits (imported only when asked: torch is slow to import)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fl_audit.errors import InputError


def load_weights(module: torch.nn.Module, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Load a trace's arrays into a module, by name.

    Raises:
        InputError: Naming the first array that does not fit.
    """
    state = module.state_dict()
    for name in [*state, *arrays]:
        found = tuple(arrays[name].shape) if name in arrays else None
        wanted = tuple(state[name].shape) if name in state else None
        if found != wanted:
            raise InputError(
                f"array {name!r}",
                found,
                f"the model needs shape {wanted}",
                _remedy(state, arrays),
            )
    module.load_state_dict({name: torch.from_numpy(np.array(arrays[name])) for name in state})


def _remedy(state: Mapping[str, object], arrays: Mapping[str, object]) -> str:
    for longer, shorter, strip in (
        (arrays, state, "Take it off their names"),
        (state, arrays, "Put it before the arrays' names"),
    ):
        name = next(iter(shorter), "")
        prefixes = {n.removesuffix(name) for n in longer if n.endswith(f".{name}")}
        for prefix in prefixes if name else ():
            if {prefix + n for n in shorter} == set(longer):
                whose = "Arrays" if longer is arrays else "The model's"
                return (
                    f"{whose} names all start with {prefix!r}, as a wrapper such as DataParallel "
                    f"or torch.compile makes them, and the other's do not. {strip}."
                )
    return "Name the model factory (and settings) that the weights belong to."


def logits(
    module: torch.nn.Module,
    arrays: Mapping[str, NDArray[np.generic]],
    inputs: NDArray[np.float32],
    *,
    device: str = "cpu",
    batch: int = 4096,
) -> NDArray[np.float64]:
    """Logits of `module` with weights `arrays`, in eval mode, shape (n, classes)."""
    load_weights(module, arrays)
    module.to(device).eval()
    with torch.no_grad():
        parts = [
            module(torch.from_numpy(inputs[i : i + batch]).to(device)).double().cpu().numpy()
            for i in range(0, len(inputs), batch)
        ]
    return np.concatenate(parts)

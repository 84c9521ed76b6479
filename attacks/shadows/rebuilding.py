"""Modules as arrays, and back: what a stored shadow model is read from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from attacks.shadows.identity import module_digest
from attacks.shadows.store import Entry
from attacks.shadows.training import Build

_BUFFER = "buffer:"  # begins the stored name of a buffer that is not in the state_dict


def module_entry(build: Build, module: nn.Module) -> Entry | None:
    """A module's weights and buffers; None if the same module cannot be built from them.

    So it is if training returns another kind of module, or leaves something in plain attributes:
    such models are trained again after an interruption.
    """
    tensors: dict[str, Any] = dict(module.state_dict())
    tensors |= {_BUFFER + n: b for n, b in module.named_buffers() if n not in tensors}
    if not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        return None  # extra state of any kind
    try:
        entry = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
        again = module_digest(rebuild(build, entry))
    except (RuntimeError, TypeError, AttributeError):  # another kind of module; a type numpy lacks
        return None
    return entry if again is not None and again == module_digest(module) else None


def rebuild(build: Build, entry: Entry) -> nn.Module:
    """The module whose weights and buffers these are."""
    module = build(0)
    found = {name: torch.from_numpy(np.array(array)) for name, array in entry.items()}
    module.load_state_dict({n: t for n, t in found.items() if not n.startswith(_BUFFER)})
    for name, tensor in found.items():
        if name.startswith(_BUFFER):
            path, _, own = name.removeprefix(_BUFFER).rpartition(".")
            # a factory may draw it anew each time, and the state_dict leaves it out
            setattr(module.get_submodule(path), own, tensor)
    return module

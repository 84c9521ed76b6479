"""Torch modules as Flower arrays, and back."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord
from torch import nn

from fl_audit.trace.query import load_weights


def to_record(module: nn.Module) -> ArrayRecord:
    """A module's state as a Flower record of numpy arrays."""
    return ArrayRecord({k: Array(v.detach().cpu().numpy()) for k, v in module.state_dict().items()})


def load_record(module: nn.Module, record: ArrayRecord) -> None:
    """Load a Flower record into a module, by name."""
    load_weights(module, {name: array.numpy() for name, array in record.items()})

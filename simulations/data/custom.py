"""A user's own data: `"module:function"` returns arrays, a torch or a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.factories import load_attribute
from simulations.data.dataset import Dataset, make_dataset


def load_custom(path: str, settings: Mapping[str, Any]) -> Dataset:
    """Call a user's function and take what it returns.

    It may return (inputs, labels) or (inputs, labels, users) as numpy arrays or torch tensors, a
    torch `Dataset` of (input, label) pairs, or a Hugging Face `Dataset` with columns "input" and
    "label" and, where it is known whose each record is, "user".

    Raises:
        InputError: If the function cannot be imported, raises, or returns something else.
    """
    function = load_attribute(path, "data.name")
    try:
        found = function(**settings)
    except Exception as error:  # users' code raises anything
        raise InputError(
            "data.name",
            path,
            f"the function raised {type(error).__name__}: {error}",
            "Mend the function, or its settings in data.settings.",
        ) from error
    inputs, labels, users = _arrays(path, found)
    return make_dataset(path, inputs, labels, None, users=users)


_Array = NDArray[np.generic]


def _arrays(path: str, found: Any) -> tuple[_Array, _Array, _Array | None]:
    """Inputs, labels, and whose each record is, where that is given."""
    if isinstance(found, tuple) and len(found) in (2, 3):
        arrays = [_array(values) for values in found]
        return arrays[0], arrays[1], arrays[2] if len(arrays) == 3 else None
    if hasattr(found, "with_format"):  # Hugging Face
        table = found.with_format("numpy")
        if {"input", "label"} <= set(table.column_names):
            whose = np.asarray(table["user"][:]) if "user" in table.column_names else None
            return np.asarray(table["input"][:]), np.asarray(table["label"][:]), whose
        raise _wrong(path, f"a table with columns {table.column_names}")
    if hasattr(found, "__len__") and hasattr(found, "__getitem__"):
        pairs = [found[row] for row in range(len(found))]
        if pairs and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            stacked = np.stack([_array(x) for x, _ in pairs])
            return stacked, np.asarray([int(y) for _, y in pairs]), None
    raise _wrong(path, type(found).__name__)


def _array(values: Any) -> NDArray[np.generic]:
    return values.numpy() if hasattr(values, "numpy") else np.asarray(values)


def _wrong(path: str, what: str) -> InputError:
    return InputError(
        "data.name",
        path,
        f"the function returned {what}",
        "Return (inputs, labels) or (inputs, labels, users), a torch Dataset of (input, label) "
        "pairs, or a Hugging Face Dataset with columns 'input', 'label' and perhaps 'user'.",
    )

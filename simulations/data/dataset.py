"""A data set as the federation sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.records import Records


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled records.

    Inputs are float32: images (channels, height, width) in [0, 1], rows of a table as they come.

    Attributes:
        users: Person that each record belongs to, numbered from 0, shape (n,); None if the data
            does not say.
    """

    records: Records
    num_classes: int
    users: NDArray[np.int64] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.records.inputs.shape[1:])


def make_dataset(
    name: str,
    inputs: NDArray[np.generic],
    labels: NDArray[np.generic],
    num_classes: int | None,
    *,
    users: NDArray[Any] | None = None,
) -> Dataset:
    """Check arrays from outside and make a data set of them.

    Args:
        users: Whose each record is: numbers or words, shape (n,).

    Raises:
        InputError: If lengths differ, inputs are not finite numbers, or labels are no classes.
    """
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise InputError(
            f"data {name!r}",
            (len(inputs), len(labels)),
            "needs as many labels as inputs, and at least one",
            "Give one label per record.",
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise InputError(
            f"labels of data {name!r}",
            labels[:3],
            "must be class numbers 0, 1, 2, ...",
            "Encode classes as whole numbers from 0; regression targets are not supported here.",
        )
    if inputs.dtype.kind not in "biuf":
        raise InputError(
            f"inputs of data {name!r}",
            str(inputs.dtype),
            "must be numbers",
            "Encode text or categories as numbers first.",
        )
    values = inputs.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if bad.size:
        raise InputError(
            f"record {bad[0]} of data {name!r}",
            "NaN or infinity",
            "inputs must be finite",
            "Fill missing values, or leave the record out.",
        )
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.max() >= classes:
        raise InputError(
            f"labels of data {name!r}",
            int(labels.max()),
            f"must be below the number of classes, {classes}",
            "Mend the labels or the class names.",
        )
    records = Records(np.arange(len(labels)), values, labels.astype(np.int64))
    return Dataset(records, classes, None if users is None else _numbered(name, users, len(labels)))


def _numbered(name: str, users: NDArray[Any], expected: int) -> NDArray[np.int64]:
    """Persons as numbers from 0, in the order of their names."""
    bad = users.shape != (expected,) or users.dtype.kind not in "biuUSO"
    if bad or any(user is None for user in users.tolist()):
        raise InputError(
            f"users of data {name!r}",
            (users.dtype.str, users.shape),
            f"must say whose each of the {expected} records is, in numbers or words",
            "Give one user per record, none of them missing.",
        )
    values = users.astype(str) if users.dtype.kind == "O" else users
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def spread(available: int, limit: int) -> NDArray[np.int64]:
    """`limit` rows spread evenly over all: sets are often sorted by class."""
    return np.linspace(0, available - 1, limit).round().astype(np.int64)

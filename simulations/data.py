"""Built-in data sets: what scikit-learn ships, so that nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

from fl_audit.errors import UnknownNameError
from fl_audit.records import Records


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Records with their shape: inputs float32 in [0, 1], images as (channels, height, width)."""

    records: Records
    num_classes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.records.inputs.shape[1:])


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, 10 classes."""
    images, labels = load_digits(return_X_y=True)
    inputs = (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    return Dataset(Records(np.arange(len(labels)), inputs, labels.astype(np.int64)), 10)


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": _digits}


def load_dataset(name: str) -> Dataset:
    """Load a built-in data set.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    if name not in DATASETS:
        raise UnknownNameError("data set", name, DATASETS)
    return DATASETS[name]()

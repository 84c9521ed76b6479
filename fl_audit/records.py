"""Records: the examples an attack asks about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """n labelled examples with ids.

    Attributes:
        ids: Row numbers in the data set they come from, shape (n,).
        inputs: Model inputs, float32, shape (n, ...).
        labels: Class indices, shape (n,).
    """

    ids: NDArray[np.int64]
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.inputs) == len(self.labels):
            raise InputError(
                "records",
                (len(self.ids), len(self.inputs), len(self.labels)),
                "ids, inputs and labels must have equal length",
                "Give one id and one label per input.",
            )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Records:
        """The given rows, in the given order."""
        rows = np.asarray(rows, dtype=np.int64)
        return Records(self.ids[rows], self.inputs[rows], self.labels[rows])

    @staticmethod
    def concatenate(parts: Sequence[Records]) -> Records:
        """All parts, one after the other."""
        return Records(
            np.concatenate([p.ids for p in parts]),
            np.concatenate([p.inputs for p in parts]),
            np.concatenate([p.labels for p in parts]),
        )

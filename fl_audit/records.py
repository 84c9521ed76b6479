"""Records: the examples an attack asks about."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError

_BLOCK_BYTES = 1 << 26  # inputs read at once where all are gone through: 64 MB


class LazyInputs:
    """Inputs that are fetched when they are sliced, for data larger than memory.

    It stands in for an array of shape (n, ...) wherever rows are taken in blocks.

    Args:
        fetch: Inputs of the given rows of the source, float32, shape (b, ...).
        rows: Which rows of the source these are.
        shape: Shape of one input.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        fetch: Callable[[NDArray[np.int64]], NDArray[np.float32]],
        rows: NDArray[np.int64],
        shape: tuple[int, ...],
    ) -> None:
        self._fetch, self._rows, self._shape = fetch, rows, shape

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...)."""
        return (len(self._rows), *self._shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return 1 + len(self._shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        chosen = self._rows[rows]
        if np.ndim(chosen) == 0:
            return cast("NDArray[np.float32]", self._fetch(np.asarray([chosen]))[0])
        if len(chosen) == 0:
            return np.empty((0, *self._shape), dtype=np.float32)
        return self._fetch(chosen)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def take(self, rows: NDArray[np.int64]) -> LazyInputs:
        """Some of these rows; nothing is fetched."""
        return LazyInputs(self._fetch, self._rows[rows], self._shape)


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """n labelled examples with ids.

    Attributes:
        ids: Row numbers in the data set they come from, shape (n,).
        inputs: Model inputs, float32, shape (n, ...).
        labels: Class indices, shape (n,); all 0 where there are targets.
        targets: What a regression model should answer, shape (n,); None for classification.

    `inputs` may also be `LazyInputs`: rows are then read when they are used.
    """

    ids: NDArray[np.int64]
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    targets: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        others: list[Any] = [
            self.inputs,
            self.labels,
            *([] if self.targets is None else [self.targets]),
        ]
        if any(len(values) != len(self.ids) for values in others):
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
        source: Any = self.inputs
        inputs: Any = source.take(rows) if isinstance(source, LazyInputs) else source[rows]
        targets = None if self.targets is None else self.targets[rows]
        return Records(self.ids[rows], inputs, self.labels[rows], targets)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    def blocks(self, *, num_bytes: int = _BLOCK_BYTES) -> list[slice]:
        """Rows in blocks whose inputs take about this much memory, at least one row each."""
        each = 4 * max(1, int(np.prod(self.input_shape)))
        size = max(1, num_bytes // each)
        return [slice(i, min(i + size, len(self))) for i in range(0, len(self), size)]

    def digest(self) -> str:
        """sha256 over inputs, labels and targets; ids do not count. Reads every input once."""
        sha = hashlib.sha256(repr((len(self), self.input_shape)).encode())
        for rows in self.blocks():
            sha.update(np.ascontiguousarray(self.inputs[rows], dtype=np.float32).data)
        sha.update(np.ascontiguousarray(self.labels, dtype=np.int64).data)
        if self.targets is not None:
            sha.update(np.ascontiguousarray(self.targets, dtype=np.float32).data)
        return sha.hexdigest()

    @staticmethod
    def concatenate(parts: Sequence[Records]) -> Records:
        """All parts, one after the other."""
        targets = [p.targets for p in parts if p.targets is not None]
        return Records(
            np.concatenate([p.ids for p in parts]),
            _concatenate_inputs([p.inputs for p in parts]),
            np.concatenate([p.labels for p in parts]),
            np.concatenate(targets) if len(targets) == len(parts) else None,
        )


def _concatenate_inputs(parts: list[Any]) -> NDArray[np.float32]:
    if not any(isinstance(part, LazyInputs) for part in parts):
        return np.concatenate(parts)
    ends = np.cumsum([len(part) for part in parts])

    def fetch(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.empty((len(rows), *parts[0].shape[1:]), dtype=np.float32)
        which = np.searchsorted(ends, rows, side="right")
        for number, part in enumerate(parts):
            here = np.flatnonzero(which == number)
            if here.size:
                start = ends[number] - len(part)
                found[here] = part[rows[here] - start]
        return found

    lazy = LazyInputs(fetch, np.arange(ends[-1]), tuple(parts[0].shape[1:]))
    return cast("NDArray[np.float32]", lazy)

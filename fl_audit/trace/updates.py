"""Updates of a trace, computed tensor by tensor when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


class Update(Mapping[str, NDArray[np.float64]]):
    """after - before, tensor by tensor."""

    def __init__(
        self,
        names: list[str],
        before: Mapping[str, NDArray[np.generic]],
        after: Mapping[str, NDArray[np.generic]],
    ) -> None:
        self._names, self._before, self._after = names, before, after

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        if name not in self._names:
            raise KeyError(name)
        return self._after[name].astype(np.float64) - self._before[name].astype(np.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class WeightedSum(Mapping[str, NDArray[np.float64]]):
    """Sum of weight * update over parts, tensor by tensor."""

    def __init__(
        self,
        names: list[str],
        parts: Sequence[tuple[float, Mapping[str, NDArray[np.float64]]]],
    ) -> None:
        self._names, self._parts = names, parts

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        (first_weight, first), *others = self._parts
        total = first_weight * first[name]
        for weight, update in others:
            total = total + weight * update[name]
        return total

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

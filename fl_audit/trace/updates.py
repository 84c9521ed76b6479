"""Updates of a trace, computed tensor by tensor when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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


class Rest(Mapping[str, NDArray[np.float64]]):
    """(whole - sum of weight * update) * scale, tensor by tensor."""

    def __init__(
        self,
        whole: Mapping[str, NDArray[np.float64]],
        updates: list[tuple[float, Mapping[str, NDArray[np.float64]]]],
        scale: float,
    ) -> None:
        self._whole, self._updates, self._scale = whole, updates, scale

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        rest = self._whole[name]
        for weight, update in self._updates:
            rest = rest - weight * update[name]
        return rest * self._scale

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)

"""What is kept between runs: weights of shadow models and answers of models, as safetensors.

An entry's name is a digest of everything that it depends on (weights, records, settings), so what
has changed is never found, and never served stale. Without a folder, entries live in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_audit.errors import TraceError, clean_text
from fl_audit.files import private_directory, write_arrays

Entry = dict[str, NDArray[np.generic]]
_IN_MEMORY = 1 << 30  # bytes of answers kept in memory; the oldest go first


def entry_key(*parts: object) -> str:
    """sha256 over the parts, which must have a faithful JSON form."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Store:
    """Entries by key.

    Args:
        folder: Where entries are kept between runs; None: in memory, for this run only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = None if folder is None else private_directory(folder)
        self._memory: dict[str, Entry] = {}

    def find(self, kind: str, key: str, *, on_disk: bool = True) -> Entry | None:
        """An entry, or None if it is not there.

        Raises:
            TraceError: If its file is damaged.
        """
        name = f"{kind}-{key}"
        if name in self._memory:
            return self._memory[name]
        path = self._path(name) if on_disk else None
        if path is None or not path.is_file():
            return None
        try:
            return load_file(path)
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise TraceError(
                str(path), clean_text(error), "the stored file is damaged", "Delete it; run again."
            ) from error

    def keep(self, kind: str, key: str, entry: Entry, *, on_disk: bool = True) -> None:
        """Keep an entry; written whole or not at all."""
        name = f"{kind}-{key}"
        path = self._path(name) if on_disk else None
        if path is not None:
            write_arrays(path, entry)
            if kind == "weights":
                return  # large, and the model itself is held
        self._memory[name] = entry
        while len(self._memory) > 1 and self._size() > _IN_MEMORY:
            self._memory.pop(next(iter(self._memory)))

    def answers(
        self,
        key: str | None,
        compute: Callable[[], NDArray[np.float64]],
        *,
        on_disk: bool = True,
    ) -> NDArray[np.float64]:
        """Answers under a key, computed if they are not there. No key: computed, not kept."""
        if key is None:
            return compute()
        found = self.find("answers", key, on_disk=on_disk)
        if found is None:
            found = {"answers": compute()}
            self.keep("answers", key, found, on_disk=on_disk)
        return np.asarray(found["answers"], dtype=np.float64)

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.safetensors"

    def _size(self) -> int:
        return sum(a.nbytes for entry in self._memory.values() for a in entry.values())

"""Array files of a trace, and never more bytes of them than the recording policy allows."""

from __future__ import annotations

import math
from pathlib import Path

from fl_audit.files import write_bytes

_MEGA = 1_000_000


class ArrayStore:
    """Writes files, and counts them.

    Room is always left for one model, so that the last one of a run can be kept. Once something
    did not fit, the store is full for good, and only the last model is written.

    Args:
        max_megabytes: The cap; None for none.
    """

    def __init__(self, max_megabytes: float | None) -> None:
        self._cap = math.inf if max_megabytes is None else max_megabytes * _MEGA
        self._bytes = 0
        self._model_bytes = 0  # the room to leave
        self._last_bytes = 0  # of the last model, where it stands in that room
        self.is_full = False

    def keep(self, path: Path, data: bytes, *, is_model: bool = False) -> bool:
        """Write a file that stays; whether it fitted."""
        if is_model:
            self._model_bytes = max(self._model_bytes, len(data))
        to_leave = max(0, self._model_bytes - self._last_bytes)
        if not self.fits(len(data) + to_leave):
            return False
        self._write(path, data)
        return True

    def keep_last(self, path: Path, data: bytes) -> bool:
        """Write the last model into the room left for it; whether it fitted."""
        self._model_bytes, self._last_bytes = max(self._model_bytes, len(data)), 0
        if not self._has_room(len(data)):
            return False
        self._write(path, data)
        self._last_bytes = len(data)
        return True

    def settle_last(self) -> bool:
        """Let the last model stay for good; whether the next one has room beside it."""
        if not self.fits(self._model_bytes):
            return False
        self._last_bytes = 0
        return True

    def fits(self, num_bytes: int) -> bool:
        """Whether so much more is allowed. If it is not, the store is full from now on."""
        self.is_full = self.is_full or not self._has_room(num_bytes)
        return not self.is_full

    def remove(self, path: Path) -> None:
        """Delete a file that was written before."""
        if path.is_file():
            self._bytes -= path.stat().st_size
            path.unlink()

    def _has_room(self, num_bytes: int) -> bool:
        return self._bytes + num_bytes <= self._cap

    def _write(self, path: Path, data: bytes) -> None:
        write_bytes(path, data)
        self._bytes += len(data)

"""Files that hold personal data: directories 0700, files 0600, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as safetensors_bytes

Arrays = Mapping[str, NDArray[np.generic]]


def private_directory(path: Path) -> Path:
    """Create `path` (and parents); its own mode is 0700."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Write `path` atomically with mode 0600: a reader sees the old bytes or the new ones."""
    temporary = path.with_name(path.name + ".part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically with mode 0600."""
    write_bytes(path, text.encode("utf-8"))


def write_arrays(path: Path, arrays: Arrays) -> str:
    """Write arrays as safetensors; return the sha256 of the file."""
    data = safetensors_bytes({name: np.ascontiguousarray(a) for name, a in arrays.items()})
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def sha256_array(array: NDArray[np.generic]) -> str:
    """sha256 of an array's bytes in C order (dtype and shape are kept beside it)."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Files that hold personal data: directories 0700, files 0600, written whole or not at all.

What is read may come from somebody else: see `read_json` and `find_special_file`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as safetensors_bytes

Arrays = Mapping[str, NDArray[np.generic]]
_MAX_DEPTH = 64  # of JSON; ours is no deeper than 10


def private_directory(path: Path) -> Path:
    """Create `path` (and parents); its own mode is 0700."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Write `path` atomically with mode 0600: a reader sees the old bytes or the new ones."""
    temporary = path.with_name(path.name + ".part")
    temporary.unlink(missing_ok=True)  # left by a killed process, or planted: a link elsewhere
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            temporary.chmod(0o600)  # whatever the umask
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically with mode 0600."""
    write_bytes(path, text.encode("utf-8"))


def arrays_bytes(arrays: Arrays) -> bytes:
    """Arrays as the bytes of a safetensors file."""
    data: bytes = safetensors_bytes({name: _plain(a) for name, a in arrays.items()})
    return data


def write_arrays(path: Path, arrays: Arrays) -> int:
    """Write arrays as safetensors; return how many bytes that took."""
    data = arrays_bytes(arrays)
    write_bytes(path, data)
    return len(data)


def sha256_array(array: NDArray[np.generic]) -> str:
    """sha256 of an array's bytes in C order (dtype and shape are kept beside it)."""
    return hashlib.sha256(_plain(array).reshape(-1).view(np.uint8).data).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Content of a JSON file that anybody may have written.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not plain JSON in UTF-8: what parsers disagree about (duplicate keys,
            NaN, lone surrogates) or fall over (very deep nesting) is refused.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_finite_float,
            parse_float=_finite_float,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_nodes(content, has_escapes="\\u" in text)
    return content


def find_special_file(directory: Path) -> Path | None:
    """Something below `directory` that is neither a folder nor a plain file, if there is any.

    A link in somebody else's directory could make us read, or write, anywhere.

    Raises:
        OSError: If a folder cannot be listed.
    """
    folders = [directory]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    return Path(entry.path)
    return None


def _plain(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """C order and native bytes. (`np.ascontiguousarray` would turn shape () into (1,).)"""
    array = np.asarray(array, order="C")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands there twice")
    return table


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _check_nodes(content: Any, *, has_escapes: bool) -> None:
    """Breadth first: no recursion, whatever the depth."""
    level, depth = [content], 0
    while level:
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below += [*node, *node.values()]
            elif isinstance(node, list):
                below += node
            elif has_escapes and isinstance(node, str):
                node.encode()  # UnicodeEncodeError: half of a surrogate pair
        level, depth = below, depth + 1

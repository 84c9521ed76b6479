"""A reconstruction result as files of pictures: one a record, and a grid beside the originals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_audit.files import private_directory, write_bytes
from fl_audit.pictures import Pixels, grid, pixels, png_bytes

_PLACE = re.compile(r"round_([0-9]{4,9})/(?:client_([0-9]{1,18})|sum)/reconstruction")
_OURS = re.compile(r"grid\.png|round_[0-9]+_(client_[0-9]+|sum)_[0-9]+\.png")
_MOST_IN_GRID = 64  # records


def write_pictures(arrays: Mapping[str, NDArray[np.generic]], folder: Path) -> int:
    """Write every reconstruction that is a picture, and `grid.png` of the first 64.

    In the grid stand, from top to bottom: original, reconstruction, guess. Pictures of an earlier
    result in the folder are deleted.

    Args:
        arrays: As `shown_arrays` gives them.
        folder: Is created if there is a picture; 0700, files 0600.

    Returns:
        How many reconstructions were written.
    """
    for path in folder.glob("*.png"):
        if _OURS.fullmatch(path.name):
            path.unlink()
    guess = pixels(arrays.get("baseline"))
    shown: list[list[Pixels | None]] = []
    num = 0
    for key in sorted(arrays):
        match = _PLACE.fullmatch(key)
        if match is None or arrays[key].ndim == 0:
            continue
        who = "sum" if match[2] is None else f"client_{int(match[2])}"
        originals = arrays.get(key.replace("reconstruction", "original"))
        for row, image in enumerate(arrays[key]):
            picture = pixels(image)
            if picture is None:
                continue
            num += 1
            name = f"round_{int(match[1]):04d}_{who}_{row:02d}.png"
            write_bytes(private_directory(folder) / name, png_bytes(picture))
            has_original = originals is not None and row < len(originals)
            original = pixels(originals[row]) if has_original and originals is not None else None
            shown.append([original, picture, guess])
    if shown:
        write_bytes(folder / "grid.png", png_bytes(grid(_alike(shown)[:_MOST_IN_GRID])))
    return num


def _alike(shown: list[list[Pixels | None]]) -> list[list[Pixels | None]]:
    """Without versions of another size than the first picture: they have no place in a grid."""
    first = shown[0][1]
    assert first is not None  # a reconstruction is a picture, or it is not shown
    size = first.shape[:2]
    return [
        [p if p is not None and p.shape[:2] == size else None for p in versions]
        for versions in shown
    ]

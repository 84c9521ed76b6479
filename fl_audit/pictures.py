"""Pictures of records as PNG: one by one, and many side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""Shape (height, width) or (height, width, 3)."""
_TILE = 64  # pixels that the shorter side of a picture has at least, in a grid
_GAP, _WHITE = 4, 255
_ACROSS = 8  # records beside each other in a grid


def pixels(image: NDArray[np.generic] | None) -> Pixels | None:
    """An image (channels, height, width) in [0, 1] as 8-bit pixels; None if it is no picture.

    Values outside [0, 1] are cut, NaN is black.
    """
    if image is None or image.ndim != 3 or image.shape[0] not in (1, 3) or image.size == 0:
        return None
    if image.dtype.kind not in "fiub":
        return None
    scaled = np.nan_to_num(image.astype(np.float64)) * 255
    levels = np.clip(scaled, 0, 255).round().astype(np.uint8)
    return levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)


def png_bytes(picture: Pixels) -> bytes:
    """Pixels as the bytes of a PNG file."""
    from PIL import Image  # slow to import

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG")
    return buffer.getvalue()


def grid(records: Sequence[Sequence[Pixels | None]]) -> Pixels:
    """Versions of each record below one another, records side by side; small ones enlarged.

    Args:
        records: For each record its versions, as many for each; None leaves a place white. All
            pictures have one size.

    Returns:
        Colour pixels.
    """
    sizes = [
        picture.shape[:2] for versions in records for picture in versions if picture is not None
    ]
    height, width = sizes[0]
    scale = -(-_TILE // min(height, width))
    high, wide = height * scale + _GAP, width * scale + _GAP
    num = len(records[0])
    across = min(_ACROSS, len(records))
    bands = -(-len(records) // across)
    band = num * high + _GAP  # a wider gap between bands
    whole = np.full((bands * band, across * wide, 3), _WHITE, dtype=np.uint8)
    for place, versions in enumerate(records):
        for row, picture in enumerate(versions):
            if picture is None:
                continue
            tile = np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)
            top = place // across * band + row * high
            left = place % across * wide
            colour = tile[..., None] if tile.ndim == 2 else tile
            whole[top : top + height * scale, left : left + width * scale] = colour
    return whole

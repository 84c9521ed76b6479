"""Pixels of a picture: channels first, float32 in [0, 1], whatever mode it is stored in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

_WHITE = {"1": 1, "L": 255, "I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I;16N": 65535}
"""Modes of one channel, with the value of white."""
_COLOUR = ("RGB", "P", "CMYK", "YCbCr", "HSV")
_ALPHA = {"LA": "L", "PA": "RGB", "RGBA": "RGB"}
"""Modes with an alpha channel, and what is left without it."""


def pixels(image: Image) -> NDArray[np.float32]:
    """One picture as (channels, height, width).

    Black-and-white, 8-bit and 16-bit grey give one channel. Colours give three, and so do palettes
    of any colours, so that the shape does not depend on what a picture shows. Transparency is left
    out where nothing is transparent.

    Raises:
        ValueError: If pixels are transparent, which have no colour before somebody chooses what is
            behind them; or if the mode does not say which value is white.
    """
    if image.mode in _ALPHA or "transparency" in image.info:
        if _is_transparent(image):
            raise ValueError("some of its pixels are transparent")
        image = image.convert("RGBA") if image.mode == "P" else image  # else Pillow warns
        image = image.convert(_ALPHA[image.mode]) if image.mode in _ALPHA else image
    if image.mode in _WHITE:
        grey = np.asarray(image).astype(np.float32) / np.float32(_WHITE[image.mode])
        return grey[None]
    if image.mode not in _COLOUR:
        raise ValueError(f"its mode, {image.mode!r}, does not say which value is white")
    colours = np.asarray(image.convert("RGB")).astype(np.float32) / np.float32(255)
    return colours.transpose(2, 0, 1)


def _is_transparent(image: Image) -> bool:
    if image.mode in _WHITE and _WHITE[image.mode] == 65535:  # Pillow converts no such picture
        return bool((np.asarray(image) == image.info["transparency"]).any())
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return bool(alpha.min() < 255)

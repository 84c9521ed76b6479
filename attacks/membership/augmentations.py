"""Queries beside the record itself: the changes that training often makes to an image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from attacks.shadows.workshop import Transform
from fl_audit.errors import InputError

_SHIFTS = (0, -1, 1)  # pixels, each way


def query_transforms(input_shape: Sequence[int], num: int) -> list[tuple[str, Transform | None]]:
    """The record itself, its mirror image, then both shifted by a pixel: at most 18 queries.

    Args:
        input_shape: (channels, height, width) for more than one query.
        num: How many.

    Returns:
        (name, transform) pairs; the first is ("", None).

    Raises:
        InputError: If more than one is asked of inputs that are no images.
    """
    if num > 1 and len(input_shape) != 3:
        raise InputError(
            "num_augmentations",
            num,
            f"mirroring and shifting need images; inputs have shape {tuple(input_shape)}",
            "Use num_augmentations = 1.",
        )
    places = [(dy, dx, mirrored) for dy, dx in product(_SHIFTS, _SHIFTS) for mirrored in (0, 1)]
    queries: list[tuple[str, Transform | None]] = [("", None)]
    for dy, dx, mirrored in places[1:num]:
        queries.append((f"shift {dy} {dx} mirror {mirrored}", _transform(dy, dx, bool(mirrored))))
    return queries


def _transform(dy: int, dx: int, mirrored: bool) -> Transform:
    def apply(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        changed = inputs[..., ::-1] if mirrored else inputs
        padded = np.pad(changed, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        height, width = inputs.shape[-2:]
        return padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    return apply

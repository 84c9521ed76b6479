"""Examples that are alone in some neurons: found there, and subtracted, so that others are alone.

A neuron that a single example turns on has that example's input as the gradient of its weights, up
to a factor. Two such neurons have parallel gradients, which mixtures do not. Natural inputs of one
kind turn neurons on in much the same order, so that such neurons are common. An example's direction
d and mask a take it out of the gradient exactly, Y - (Y a) dᵀ / (dᵀ a), and leave the rest a batch
of one fewer, with other examples alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from attacks.reconstruction.spear_found import Found
from attacks.reconstruction.spear_layer import Evidence, Values, mask_of, parallel_rows


def peel(seen: Evidence, found: Found) -> None:
    """Add examples that are alone in two or more neurons, until there are no more."""
    while len(found) < seen.rank:
        is_any_new = False
        for direction, count in lone_directions(seen, found.remainder(seen)):
            mask = mask_of(seen, direction, agreeing=count - 1)
            if mask is not None:
                is_any_new |= found.add(mask, direction)
        if not is_any_new:
            return


def lone_directions(seen: Evidence, rows: Values) -> Iterator[tuple[Values, int]]:
    """Directions that several rows share within their errors, and how many; the most first."""
    for group in parallel_rows(rows):
        members = rows[group]
        direction = np.linalg.svd(members, full_matrices=False)[2][0]
        last = float(seen.basis[-1] @ direction)
        if last != 0.0:
            yield direction / last, len(group)

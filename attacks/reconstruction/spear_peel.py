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
from numpy.typing import NDArray

from attacks.reconstruction.spear_found import Found
from attacks.reconstruction.spear_layer import SIGMAS, Evidence, Values, mask_of

_NEARLY = 1e-3  # 1 - |cosine| of directions that are worth comparing exactly


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


def parallel_rows(rows: Values) -> list[NDArray[np.int64]]:
    """Groups of two or more rows that are multiples of one another, the largest first.

    Args:
        rows: Shape (n, rank), with errors of standard deviation 1; rows within them count as 0.
    """
    size = np.linalg.norm(rows, axis=1)
    doubt = SIGMAS * np.sqrt(rows.shape[1])  # a row's error, at most
    places = np.flatnonzero(size > 4 * doubt)
    unit = rows[places] / size[places, None]
    cosine = unit @ unit.T
    first, second = np.nonzero(np.triu(np.abs(cosine) > 1 - _NEARLY, 1))
    sign = np.sign(cosine[first, second])[:, None]
    apart = np.linalg.norm(unit[first] - sign * unit[second], axis=1)
    close = apart <= doubt * (1 / size[places[first]] + 1 / size[places[second]])
    linked = np.eye(len(places), dtype=np.bool_)
    linked[first[close], second[close]] = linked[second[close], first[close]] = True
    free, groups = np.ones(len(places), dtype=np.bool_), []
    while free.any():
        partners = np.where(free, (linked & free).sum(axis=1), 0)
        best = int(partners.argmax())
        if partners[best] < 2:
            break
        group = np.flatnonzero(linked[best] & free)
        groups.append(places[group])
        free[group] = False
    return groups

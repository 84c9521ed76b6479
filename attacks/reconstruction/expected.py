"""What theory expects of a planted layer: which records of a batch can be told apart at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DRAWS = 100


def peelable(fired: NDArray[np.bool_], *, equal: bool) -> NDArray[np.bool_]:
    """Which records of a batch come out of sums.

    Args:
        fired: Which sums each record is in, shape (b, r).
        equal: Whether signals of all records have one size. Then one sum that holds a record alone
            is enough to take it out of others; else two must agree.

    Returns:
        Shape (b,). In the end, one sum that holds a record alone is enough.
    """
    fired, known = fired.copy(), np.zeros(len(fired), np.bool_)
    least = 1 if equal else 2
    while True:
        lone = fired[:, fired.sum(axis=0) == 1].sum(axis=1)
        new = lone >= least
        if not new.any():
            found: NDArray[np.bool_] = known | (lone >= 1)
            return found
        known |= new
        fired[new] = False


def share_by_peeling(
    fired: NDArray[np.bool_], batch: int, *, equal: bool, rng: np.random.Generator
) -> float:
    """Mean share of a batch that can be told apart, over batches of the server's own records.

    Args:
        fired: Which sums each of its records is in, shape (m, r).
        batch: Records in a batch, at most m.
        equal: As for `peelable`.
    """
    drawn = (rng.choice(len(fired), batch, replace=False) for _ in range(_DRAWS))
    return float(np.mean([peelable(fired[rows], equal=equal).mean() for rows in drawn]))

"""What theory expects of a planted layer: which records of a batch can be told apart at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DRAWS = 100
_FIRM = 2  # sums that must hold a record alone before it is taken out of others


def peelable(fired: NDArray[np.bool_], *, least: int = _FIRM) -> NDArray[np.bool_]:
    """Which records of a batch come out of sums, if only singles and agreement count.

    Args:
        fired: Which sums each record is in, shape (b, r).
        least: Sums that must hold a record alone before it is taken out of others.

    Returns:
        Shape (b,). In the end, one sum that holds a record alone is enough.
    """
    fired, known = fired.copy(), np.zeros(len(fired), np.bool_)
    while True:
        lone = fired[:, fired.sum(axis=0) == 1].sum(axis=1)
        new = lone >= least
        if not new.any():
            found: NDArray[np.bool_] = known | (lone >= 1)
            return found
        known |= new
        fired[new] = False


def share_by_peeling(fired: NDArray[np.bool_], batch: int, *, rng: np.random.Generator) -> float:
    """Mean share of a batch that can be told apart, over batches of the server's own records.

    Args:
        fired: Which sums each of its records is in, shape (m, r).
        batch: Records in a batch, at most m.
    """
    drawn = (rng.choice(len(fired), batch, replace=False) for _ in range(_DRAWS))
    return float(np.mean([peelable(fired[rows]).mean() for rows in drawn]))


def mean_share(shares: Sequence[float]) -> dict[str, float]:
    """For `Reconstructions.expected`: the mean over updates, if there is any."""
    return {"recovered": float(np.mean(shares))} if shares else {}

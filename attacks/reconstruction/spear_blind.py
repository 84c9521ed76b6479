"""Masks by sampling alone: for whoever has a gradient and not the model that it was taken at.

The sparsest independent vectors of the gradient's column space are taken for the masks: a mixture
of two examples vanishes only on neurons that both leave off. Nothing confirms them, as every
choice of independent vectors gives inputs that explain the gradient.

References:
    Dimitrov et al., "SPEAR: Exact Gradient Inversion of Batches in Federated Learning",
    NeurIPS 2024, section 3. https://arxiv.org/abs/2403.03945
"""

from __future__ import annotations

import time

import numpy as np

from attacks.reconstruction.spear_found import is_independent
from attacks.reconstruction.spear_layer import Evidence, Values
from attacks.reconstruction.spear_search import Pool, sample

_CHUNK = 4096  # draws at a time
_SETTLED = 4  # chunks without a sparser choice: it is taken


def sparsest_masks(
    seen: Evidence, *, rng: np.random.Generator, max_tries: int, deadline: float
) -> tuple[Values | None, int]:
    """As many masks as examples, shape (rank, rank), in columns; None if too few were found.

    Args:
        deadline: `time.monotonic()` to stop at.

    Returns:
        (masks, draws).
    """
    if seen.rank == 1:
        return np.ones((1, 1)), 0
    pool, order = Pool(seen.rows), np.arange(len(seen.rows))
    best: Values | None = None
    most, tries, since = -1, 0, 0
    while tries < max_tries and since < _SETTLED and time.monotonic() < deadline:
        size = min(_CHUNK, max_tries - tries)
        tries += size
        is_new = pool.add(sample(seen.rows, order, 1.0, size, rng=rng), rng)
        chosen, zeros = _choice(pool, seen.rank) if is_new else (None, -1)
        since = 0 if zeros > most else since + (best is not None)
        if zeros > most:
            best, most = chosen, zeros
    return best, tries


def _choice(pool: Pool, rank: int) -> tuple[Values | None, int]:
    """Independent vectors, sparsest first, and on how many rows they vanish in all."""
    chosen, total = np.empty((rank, 0)), 0
    for vector, zeros in zip(pool.vectors, pool.zeros, strict=True):
        if is_independent(chosen, vector):
            chosen, total = np.column_stack([chosen, vector]), total + int(zeros)
        if chosen.shape[1] == rank:
            return chosen, total
    return None, -1

"""Masks by sampling: the part of SPEAR that needs no example to be alone in a neuron.

A mask is known up to its length from rank - 1 neurons that its example leaves off. Neurons are
drawn at random until some are all off for one example: the vector that vanishes on them then
vanishes on many more. As many masks as examples, sparsest first, give inputs; the model tells which
of them are right. Neurons that an average input leaves off are drawn first: they are off for
several examples.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.reconstruction.spear_found import Found, is_independent
from attacks.reconstruction.spear_layer import SIGMAS, Evidence, Values, mask_of

_CHUNK = 4096  # draws at a time
_PROBE = 64  # rows that a draw is first tried on
_PASSED = 0.1  # share of those that a draw must vanish on to be tried on all
_REFITS = 200  # masks to fit to all their rows, of one chunk
_TINY = np.finfo(np.float64).tiny
_SHARES = (0.4, 0.25, 0.6, 1.0)  # of the rows, most often off first, that draws are taken from
_POOL = 400  # masks to keep
_SAME = 1e-9  # 1 - |cosine| of what two masks give, if they are one


def search(
    seen: Evidence,
    found: Found,
    *,
    rng: np.random.Generator,
    max_tries: int,
    deadline: float,
) -> int:
    """Add examples by sampling until all are found or the budget is spent; return the draws.

    Args:
        deadline: `time.monotonic()` to stop at.
    """
    directions, _, _ = found.known(seen.rank)
    # masks of the others are orthogonal to the inputs that are known
    space = np.linalg.svd(directions, full_matrices=True)[2][len(directions) :].T
    rows = seen.rows @ space
    order = most_often_off(seen, found)
    pool = Pool(rows)
    tries = 0
    while tries < max_tries and time.monotonic() < deadline:
        size = min(_CHUNK, max_tries - tries)
        share = _SHARES[(tries // _CHUNK) % len(_SHARES)]
        if pool.add(sample(rows, order, share, size, rng=rng), rng):
            _use(seen, found, pool.vectors @ space.T)
        tries += size
        if len(found) == seen.rank:
            break
    return tries


def sample(
    rows: Values, order: NDArray[np.int64], share: float, size: int, *, rng: np.random.Generator
) -> Values:
    """Vectors of length 1 that vanish on random rows, shape (size, b).

    Args:
        rows: Shape (n, b).
        order: Rows in the order of preference, shape (n,).
        share: Share of them to draw from, from the first on.
    """
    width = rows.shape[1]
    among = order[: max(width + 1, int(share * len(order)))]
    keys = rng.random((size, len(among)), dtype=np.float32)
    drawn = among[np.argpartition(keys, width - 1, axis=1)[:, : width - 1]]
    scale = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(scale > 0, scale, 1.0)
    system = np.empty((size, width, width))
    system[:, : width - 1] = unit[drawn]
    system[:, width - 1] = rng.normal(size=(size, width))
    right = torch.zeros((size, width, 1), dtype=torch.float64)
    right[:, -1] = 1.0
    # numpy's solve raises if one system of the stack is singular; this marks it
    solved, info = torch.linalg.solve_ex(torch.from_numpy(system), right)
    vectors: Values = solved.numpy()[..., 0]
    length = np.linalg.norm(vectors, axis=1)
    usable = (info.numpy() == 0) & np.isfinite(length) & (length > 0)
    result: Values = vectors[usable] / length[usable, None]
    return result


class Pool:
    """The sparsest masks seen so far, each once.

    Attributes:
        vectors: Shape (k, rank), sparsest first.
        zeros: Rows that each vanishes on, shape (k,).
    """

    def __init__(self, rows: Values) -> None:
        self._rows = rows
        self.vectors: Values = np.empty((0, rows.shape[1]))
        self.zeros: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._signals: Values = np.empty((0, len(rows)))  # of length 1

    def add(self, vectors: Values, rng: np.random.Generator) -> bool:
        """Keep what vanishes on more rows than it must; say whether there is anything new."""
        size = min(_PROBE, len(self._rows))
        probe = rng.choice(len(self._rows), size=size, replace=False)
        hits = (np.abs(vectors @ self._rows[probe].T) <= SIGMAS).sum(axis=1)
        vectors = vectors[hits >= _PASSED * size]
        signals = vectors @ self._rows.T
        is_zero = np.abs(signals) <= SIGMAS
        counts = is_zero.sum(axis=1)
        signals /= np.maximum(np.linalg.norm(signals, axis=1), _TINY)[:, None]
        is_known = (np.abs(signals @ self._signals.T) > 1 - _SAME).any(axis=1)
        fresh = np.flatnonzero(~is_known & (counts > self._rows.shape[1] + 1))
        is_new = False
        for place in fresh[np.argsort(-counts[fresh], kind="stable")][:_REFITS]:
            is_new |= self._keep(is_zero[place])
        best = np.argsort(-self.zeros, kind="stable")[:_POOL]
        self.vectors, self.zeros = self.vectors[best], self.zeros[best]
        self._signals = self._signals[best]
        return is_new

    def _keep(self, is_zero: NDArray[np.bool_]) -> bool:
        """Refit a mask to all rows that it vanishes on, and keep it if it is new."""
        vector = np.linalg.svd(self._rows[is_zero], full_matrices=False)[2][-1]
        signal = self._rows @ vector
        length = float(np.linalg.norm(signal))
        zeros = int((np.abs(signal) <= SIGMAS).sum())
        if length == 0 or zeros < is_zero.sum():
            return False
        signal /= length
        if (np.abs(self._signals @ signal) > 1 - _SAME).any():
            return False
        self.vectors = np.vstack([self.vectors, vector])
        self.zeros = np.append(self.zeros, zeros)
        self._signals = np.vstack([self._signals, signal])
        return True


def _use(seen: Evidence, found: Found, vectors: Values) -> None:
    """Complete the known masks by the sparsest others; keep what the model confirms."""
    is_any_new = True
    while is_any_new and len(found) < seen.rank:
        is_any_new = False
        chosen = found.vectors(seen.rank)
        num_known = chosen.shape[1]
        for vector in vectors:
            if chosen.shape[1] < seen.rank and is_independent(chosen, vector):
                chosen = np.column_stack([chosen, vector])
        if chosen.shape[1] < seen.rank:
            return
        for direction in np.linalg.inv(chosen)[num_known:]:
            if direction @ seen.basis[-1] == 0:
                continue
            mask = mask_of(seen, seen.scaled(direction))
            if mask is not None:
                is_any_new |= found.add(mask, None)


def most_often_off(seen: Evidence, found: Found) -> NDArray[np.int64]:
    """Neurons in the order of what they are given by the average of the examples not yet known."""
    rest = found.remainder(seen) * seen.noise[:, None]
    bias = rest @ seen.basis[-1]
    average = rest.T @ bias
    if average @ seen.basis[-1] == 0:
        return np.arange(len(rest))
    layer = seen.layers[0]
    value = layer.weight @ seen.inputs(average) + layer.bias
    return np.argsort(value, kind="stable")

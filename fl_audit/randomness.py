"""A generator of its own for each place that draws: same seed and path, same numbers."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def derived_seed(seed: int, *path: int | str) -> int:
    """A 128-bit seed for one place, from the run's seed and the place's name.

    A hash, not `np.random.SeedSequence([seed, *path])`: there, a path that ends in 0 gives the
    numbers of the path without it.
    """
    text = json.dumps([seed, *path])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def derived_rng(seed: int, *path: int | str) -> np.random.Generator:
    """The generator of one place."""
    return np.random.default_rng(derived_seed(seed, *path))

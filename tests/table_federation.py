"""A small table federation: three numbers and three categories, one-hot encoded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIZES = (4, 3, 2)  # values of each category
NUMBERS = 3
GROUPS = [[3, 4, 5, 6], [7, 8, 9], [10, 11]]
AGES = (-1.5, 0.25)  # smallest, and the step between neighbours, of the first column


def rows(num: int = 600) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of one evenly spaced number, two free ones, and categories, rare values among them."""
    rng = np.random.default_rng(20_261_125)
    labels = rng.integers(2, size=num)
    even = AGES[0] + AGES[1] * rng.integers(13, size=num)
    parts = [even[:, None], rng.normal(size=(num, 2)) + 0.5 * labels[:, None]]
    for size in SIZES:
        chance = 1.0 / np.arange(1, size + 1)
        parts.append(np.eye(size)[rng.choice(size, num, p=chance / chance.sum())])
    return np.concatenate(parts, axis=1).astype(np.float32), labels

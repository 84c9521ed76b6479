"""Which records a shadow model is trained on: by halves, so that every record is in and out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.randomness import derived_rng

LEAST_AUXILIARY = 20  # records: halves of fewer train no model worth the name
Mode = str
""""online": audited records take part; "offline": auxiliary records only."""


def pair_masks(
    num_audited: int, num_auxiliary: int, *, mode: Mode, train_size: int, seed: int, pair: int
) -> NDArray[np.bool_]:
    """Training sets of shadow models 2 * pair and 2 * pair + 1: two halves of one draw.

    Online, the draw is all audited records and as many auxiliary ones as make the halves
    `train_size` large; offline, auxiliary records alone. So of any even number of models, each
    audited record is in exactly half (online) or in none (offline).

    Args:
        train_size: Records that a model should be trained on; the halves are smaller where there
            are not enough records, and larger where the audited ones alone are more.

    Returns:
        True where a record is trained on, shape (2, num_audited + num_auxiliary).
    """
    rng = derived_rng(seed, "shadows", mode, pair)
    own = num_audited if mode == "online" else 0
    extra = min(num_auxiliary, max(0, 2 * train_size - own))
    auxiliary = num_audited + rng.permutation(num_auxiliary)[:extra]
    drawn = rng.permutation(np.concatenate([np.arange(own), auxiliary]))
    masks = np.zeros((2, num_audited + num_auxiliary), dtype=np.bool_)
    half = len(drawn) // 2 + (pair % 2 if len(drawn) % 2 else 0)  # odd: the larger half in turn
    masks[0, drawn[:half]] = True
    masks[1, drawn[half:]] = True
    return masks


def too_few(count: int, least: int = LEAST_AUXILIARY) -> InputError:
    """What to raise where there are fewer auxiliary records than an attack needs."""
    return InputError(
        "auxiliary records",
        count,
        f"this attack needs at least {least} records that are not audited",
        "Give auxiliary=..., a larger population, or (in a scenario) a larger game.auxiliary.",
    )

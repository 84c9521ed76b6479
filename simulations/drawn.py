"""What a membership game's lots came to, as rows of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_audit.game import GameRules

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Candidates and null candidates, group after group, with lots and the client in question.

    Attributes:
        kinds: Place in `fl_audit.game.KINDS` of each candidate.
    """

    rules: GameRules
    candidates: Rows
    is_member: NDArray[np.bool_]
    client: Rows
    kinds: Rows
    null: Rows
    null_client: Rows
    null_is_member: NDArray[np.bool_]
    null_kinds: Rows


def one_hot(lots: list[int], width: int) -> NDArray[np.bool_]:
    """True at each group's lot, shape (groups * width,)."""
    chosen = np.zeros((len(lots), width), dtype=np.bool_)
    chosen[np.arange(len(lots)), lots] = True
    return chosen.reshape(-1)

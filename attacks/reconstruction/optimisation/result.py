"""What an inversion gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """Inputs whose gradient is (nearly) the observed one.

    Attributes:
        inputs: Of the best restart, shape (b, ...), float64.
        labels: Class of each, shape (b,).
        objective: The attacker's objective, penalties in it, where search and refinement ended,
            before epochs are merged and inputs put into bounds; 0 = the gradient is matched
            entirely.
        history: Objective of every evaluation, shape (evaluations, restarts), then of every step
            of refinement; NaN where a restart had ended.
        restarts: Inputs of all restarts, best first, shape (restarts, b, ...).
        restart_objectives: Their objectives before refinement, shape (restarts,), ascending.
        frames: Inputs on the way, shape (t, b, ...); empty unless asked for.
        best: Column of the best restart in `history`.
        evaluations: Evaluations of the objective's gradient in all restarts, and products with
            the Jacobian in refinement.
        notes: What a reader must know: labels and batch size where they were estimated, searches
            that broke off, the path that refinement took.
    """

    inputs: Values
    labels: NDArray[np.int64]
    objective: float
    history: Values
    restarts: Values
    restart_objectives: Values
    frames: Values
    best: int
    evaluations: int
    notes: tuple[str, ...] = ()

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
        objective: The attacker's objective at `inputs`; 0 = the gradient is matched entirely.
        history: Objective of every evaluation, shape (evaluations, restarts), then of every step
            of refinement; NaN where a restart had ended.
        restarts: Inputs of all restarts, best first, shape (restarts, b, ...).
        restart_objectives: Their objectives, shape (restarts,), ascending.
        frames: Inputs on the way, shape (t, b, ...); empty unless asked for.
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
    evaluations: int
    notes: tuple[str, ...] = ()

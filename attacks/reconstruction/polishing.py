"""Numbers of a table to the last digit, once its categories are settled.

With the categories fixed, a batch has few unknowns left, and the gradient is a least-squares
problem in them: Levenberg-Marquardt ends in exact recovery where the categories are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.reconstruction.optimisation.checks import gradient_tensors
from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.levenberg_marquardt import Refined, refine
from attacks.reconstruction.optimisation.objectives import build_objective
from attacks.reconstruction.optimisation.simulation import OneGradient
from attacks.reconstruction.sensitivity import probe_copy
from attacks.reconstruction.tables import TableLayout

Tensor = torch.Tensor
Values = NDArray[np.float64]


def polish_numbers(
    model: torch.nn.Module,
    gradients: Mapping[str, Any],
    rows: Values,
    labels: NDArray[np.int64],
    *,
    layout: TableLayout,
    config: InversionConfig,
    steps: int,
) -> tuple[Values, Refined]:
    """Rows with numbers that fit the gradient better, and their categories as they were.

    Args:
        model: With the weights at which the gradient was taken; it is not changed.
        gradients: Of the mean cross-entropy by parameter name.
        rows: With one category of each set to 1, shape (b, columns).
        labels: Shape (b,).
        layout: Of the table.
        config: Its objective and layers count; its penalties do not.
        steps: Of Levenberg-Marquardt, at most.

    Returns:
        Rows, and the course of the sum of squares.
    """
    module = probe_copy(model)
    like = next(module.parameters()).detach().reshape(-1)[:0]
    observed = gradient_tensors(module, gradients, like)
    names = tuple(observed)
    objective = build_objective(config, observed, names)
    simulation = OneGradient(module, names)
    fixed = torch.from_numpy(rows).to(like)
    classes = torch.from_numpy(labels).to(like.device)
    is_number = torch.zeros(rows.shape[1], dtype=torch.bool, device=like.device)
    is_number[torch.as_tensor(layout.numeric)] = True
    places = torch.nonzero(is_number.expand(fixed.shape).reshape(-1)).flatten()

    def filled(numbers: Tensor) -> Tensor:
        return fixed.reshape(-1).index_put((places,), numbers).view_as(fixed)

    def residual(numbers: Tensor) -> Tensor:
        return objective.residual(simulation.pure(filled(numbers), classes))

    start = fixed.reshape(-1)[places].clone()
    refined = refine(
        residual,
        start,
        steps=steps,
        dense_limit=config.dense_limit,
        most_products=config.refine_evaluations,
    )
    found: Values = filled(refined.unknowns).detach().cpu().numpy()
    return found, refined

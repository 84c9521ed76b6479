"""Numbers once categories are known: exact where those are right, and only there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks.reconstruction.optimisation.presets import preset
from attacks.reconstruction.polishing import polish_numbers
from attacks.reconstruction.tables import infer_layout
from fl_audit.errors import InputError
from tests.table_federation import rows

SEED = 20_261_125
BATCH = 4


def _task() -> tuple[nn.Module, dict[str, Any], np.ndarray, np.ndarray]:
    """A smooth net, and its gradient on four rows."""
    model = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 2))
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model = model.double()
    inputs, labels = rows()
    truth, classes = inputs[200 : 200 + BATCH].astype(np.float64), labels[200 : 200 + BATCH]
    loss = nn.functional.cross_entropy(model(torch.from_numpy(truth)), torch.from_numpy(classes))
    found = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return model, dict(zip(names, found, strict=True)), truth, classes


@pytest.mark.parametrize("objective", ["cosine", "euclidean"])
def test_numbers_come_back_exactly(objective: str) -> None:
    model, gradients, truth, labels = _task()
    begin = truth.copy()
    begin[:, :3] += np.random.default_rng(SEED).normal(0, 0.1, (BATCH, 3))
    found, refined = polish_numbers(
        model,
        gradients,
        begin,
        labels,
        layout=infer_layout(rows()[0]),
        config=preset("tabular", objective=objective),
        steps=20,
    )
    np.testing.assert_allclose(found, truth, atol=1e-8)
    assert refined.objective[-1] < 1e-18


def test_wrong_categories_cannot_be_made_good_by_numbers() -> None:
    model, gradients, truth, labels = _task()
    begin = truth.copy()
    begin[0, 3:7] = np.roll(begin[0, 3:7], 1)
    found, refined = polish_numbers(
        model,
        gradients,
        begin,
        labels,
        layout=infer_layout(rows()[0]),
        config=preset("tabular"),
        steps=20,
    )
    np.testing.assert_array_equal(found[:, 3:], begin[:, 3:])
    assert refined.objective[-1] > 1e-4


def test_an_objective_without_squares_is_refused() -> None:
    model, gradients, truth, labels = _task()
    with pytest.raises(InputError, match="sum of squares"):
        polish_numbers(
            model,
            gradients,
            truth,
            labels,
            layout=infer_layout(rows()[0]),
            config=preset("tabular", objective="sign"),
            steps=5,
        )

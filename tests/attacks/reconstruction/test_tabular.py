"""Inversion of tables: rows come back, with a confidence that knows where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import nn

from attacks.audit import audit_run
from attacks.reconstruction.optimisation.presets import PRESETS, preset
from attacks.reconstruction.tables import infer_layout
from attacks.reconstruction.tabular import (
    ATTACK,
    TableInversion,
    find_layout,
    invert_table,
)
from fl_audit.errors import InputError
from fl_audit.results import ReconstructionResult
from tests.table_federation import GROUPS, rows

SEED = 20_261_125
INPUTS, LABELS = rows()
AUXILIARY = INPUTS[:100]
LAYOUT = infer_layout(AUXILIARY)
SETTINGS: Any = ATTACK.settings
QUICK: dict[str, Any] = {"restarts": 3, "iterations": 120}


def _model(*hidden: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 40), *hidden, nn.Linear(40, 2))
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def _gradients(model: nn.Module, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
    inputs, labels = torch.from_numpy(INPUTS[chosen]), torch.from_numpy(LABELS[chosen])
    loss = nn.functional.cross_entropy(model(inputs), labels)
    found = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, found, strict=True))


def _invert(model: nn.Module, gradients: Any, size: int, **changes: Any) -> TableInversion:
    config = preset("tabular", **{**QUICK, **changes.pop("config", {})})
    return invert_table(
        model,
        gradients,
        LAYOUT,
        config=config,
        generator=torch.Generator().manual_seed(SEED),
        batch_size=size,
        proxies=AUXILIARY,
        **changes,
    )


def _right(found: TableInversion, chosen: Sequence[int]) -> tuple[Any, NDArray[np.int64]]:
    """Which columns are right, shape (b, 6), and the rows of the reconstruction in their order."""
    mine, truth = found.inversion.inputs, INPUTS[chosen].astype(np.float64)
    right = LAYOUT.right(mine[:, None], truth[None])
    order, columns = linear_sum_assignment(-right.mean(-1))
    return right[order, columns], order


def test_one_row_comes_back_exactly() -> None:
    model = _model(nn.ReLU())
    found = _invert(model, _gradients(model, [300]), 1)
    # the gradient is float32: numbers off the grid carry its rounding
    np.testing.assert_allclose(found.inversion.inputs[0], INPUTS[300], atol=1e-5)
    assert found.inversion.objective < 1e-9
    assert "match the gradient" in found.inversion.notes[-1]
    assert found.inversion.labels.tolist() == [LABELS[300]]


def test_batches_beat_a_guess() -> None:
    """The guess without a gradient: median and most frequent category of auxiliary rows.

    Of 48 cells, the guess gets about half by definition, and a search that finds nothing no more:
    40 of 48 by chance has probability < 1e-6.
    """
    model = _model(nn.Tanh())
    guess = AUXILIARY.mean(0).astype(np.float64)
    guess[LAYOUT.numeric] = np.median(AUXILIARY[:, LAYOUT.numeric], axis=0)
    right, guessed = 0, 0
    for first in (300, 304):
        chosen = list(range(first, first + 4))
        changes = {"restarts": 3, "iterations": 400}
        found = _invert(model, _gradients(model, chosen), 4, labels=LABELS[chosen], config=changes)
        assert found.confidence.shape == (4, 12)
        right += int(_right(found, chosen)[0].sum())
        truth = INPUTS[chosen].astype(np.float64)
        guessed += int(LAYOUT.right(np.tile(guess, (4, 1)), truth).sum())
    assert guessed <= 24
    assert right >= 40


def test_noise_is_not_matched_by_any_rows() -> None:
    """Null: a gradient of no data. What comes back fits none, and says so."""
    model = _model(nn.Tanh())
    generator = torch.Generator().manual_seed(SEED)
    noise = {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
    found = _invert(model, noise, 2, labels=[0, 1])
    assert found.inversion.objective > 0.1
    assert "No numbers match" in found.inversion.notes[-1]
    real = _invert(model, _gradients(model, [300]), 1)
    assert found.confidence.mean() < real.confidence.mean() - 0.3
    assert LAYOUT.snap(found.inversion.inputs, to_grid=False) == pytest.approx(
        found.inversion.inputs
    )  # still rows of a table


def test_the_same_seed_gives_the_same_rows() -> None:
    model = _model(nn.ReLU())
    gradients = _gradients(model, [300, 301])
    one, two = (_invert(model, gradients, 2, config={"iterations": 20}) for _ in range(2))
    np.testing.assert_array_equal(one.inversion.inputs, two.inversion.inputs)
    np.testing.assert_array_equal(one.confidence, two.confidence)


def test_without_polishing_numbers_are_the_pools() -> None:
    model = _model(nn.ReLU())
    found = _invert(model, _gradients(model, [300]), 1, config={"iterations": 40}, polish=0)
    assert "were pooled" in found.inversion.notes[-1]


def test_searched_labels_are_no_reason_not_to_pair_rows_up() -> None:
    model = _model(nn.ReLU())
    found = _invert(
        model, _gradients(model, [300, 301]), 2, config={"labels": "joint", "iterations": 20}
    )
    assert found.inversion.labels.shape == (2,)


def test_one_search_is_no_pool() -> None:
    model = _model(nn.ReLU())
    changes = {"restarts": 1, "iterations": 2}
    with pytest.raises(InputError, match="compares two searches"):
        _invert(model, _gradients(model, [300]), 1, config=changes)


def test_settings_are_the_presets_without_bounds() -> None:
    settings = SETTINGS()
    for name, value in PRESETS["tabular"].items():
        assert getattr(settings, name) == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no auxiliary records to tell"),
        ({"categories": GROUPS}, "set categories"),
        ({"categories": GROUPS, "input_shape": [3, 4]}, "one dimension"),
        ({"categories": [[1]], "input_shape": [12]}, "two columns or more"),
    ],
)
def test_a_table_of_unknown_layout_is_refused(settings: dict[str, Any], message: str) -> None:
    given: Any = SimpleNamespace(auxiliary=None, settings=SETTINGS(**settings))
    with pytest.raises(InputError, match=message):
        find_layout(given)


def test_known_categories_need_no_auxiliary_rows() -> None:
    settings = SETTINGS(categories=GROUPS, input_shape=[12])
    given: Any = SimpleNamespace(auxiliary=None, settings=settings)
    assert find_layout(given).numeric.tolist() == [0, 1, 2]


def test_rows_of_real_rounds_come_back(table_run: Path) -> None:
    (result,) = audit_run(table_run, attacks=[{"name": "tabular", "most_updates": 2, **QUICK}])
    assert isinstance(result, ReconstructionResult), result.record
    assert result.record.num_targets == 2
    assert result.record.metrics["exact_cells"].value == 1.0
    assert result.record.metrics["exact_rows"].value == 1.0
    assert result.record.baseline["exact_cells"].value < 1.0

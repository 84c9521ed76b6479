"""Adaptive attacks: what is sent under a defence still gives the input back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attacks.reconstruction.adaptive import Defence, adapt, perturbed_layer
from attacks.reconstruction.optimisation.engine import Sight, invert_gradients
from attacks.reconstruction.optimisation.presets import preset
from attacks.reconstruction.optimisation.simulation import OneGradient
from fl_audit.errors import InputError
from simulations.data.builtin import digits
from simulations.models import lenet_zhu

SEED = 20_261_125
SHAPE = (1, 8, 8)
Arrays = dict[str, Any]


def sent(seed: int = 0, row: int = 0) -> tuple[torch.nn.Module, Arrays, np.ndarray, int]:
    """A model, the gradient of one digit, the digit and its label."""
    torch.manual_seed(seed)
    model = lenet_zhu(input_shape=SHAPE, num_classes=10).eval()
    records = digits().records
    names = tuple(n for n, _ in model.named_parameters())
    label = int(records.labels[row])
    inputs = torch.from_numpy(records.inputs[row : row + 1])
    gradient = OneGradient(model, names)(inputs, torch.tensor([label]))
    arrays = {n: g.detach().double().numpy() for n, g in zip(names, gradient, strict=True)}
    return model, arrays, records.inputs[row].astype(np.float64), label


def error_with(defence: Defence, arrays: Arrays, more: list[Sight] | None = None) -> float:
    """Mean squared error of what comes back under a defence, attacked as that or as "none"."""
    model, _, original, label = sent()
    found = invert_gradients(
        model,
        arrays,
        input_shape=SHAPE,
        labels=[label],
        config=adapt(preset("second_order", iterations=250, refine=0), defence, arrays),
        generator=torch.Generator().manual_seed(0),
        more=more or [],
    )
    return float(np.mean((found.inputs[0] - original) ** 2))


def test_soteria_is_found_and_left_out() -> None:
    """Columns of the last layer's weight gradient are removed: nearly all of them."""
    _, arrays, _, _ = sent()
    layer = "7.weight"
    arrays[layer][:, ::2] = 0
    assert perturbed_layer(arrays) == layer
    assert error_with("soteria", arrays) < 0.2 * error_with("none", arrays)


def test_pruning_matches_what_survived() -> None:
    _, arrays, _, _ = sent()
    flat = np.concatenate([np.abs(a).ravel() for a in arrays.values()])
    cut = np.quantile(flat, 0.7)
    pruned = {n: np.where(np.abs(a) >= cut, a, 0.0) for n, a in arrays.items()}
    assert error_with("pruning", pruned) < 0.2 * error_with("none", pruned)


def test_clipping_does_not_matter_to_the_cosine() -> None:
    _, arrays, _, _ = sent()
    clipped = {n: 1e-3 * a for n, a in arrays.items()}
    assert error_with("clipping", clipped) == pytest.approx(error_with("none", arrays), rel=1e-3)


def test_signs_alone_are_matched_by_signs() -> None:
    """They tell the picture up to its contrast."""
    _, arrays, _, _ = sent()
    signs = {n: np.sign(a) for n, a in arrays.items()}
    assert error_with("sign", signs) < 0.5 * error_with("none", signs)


def test_rounds_together_average_noise_away() -> None:
    rng = np.random.default_rng(SEED)
    single: list[float] = []
    noisy = []
    for seed in range(4):
        model, arrays, _, _ = sent(seed)
        size = np.sqrt(sum(np.sum(a**2) for a in arrays.values()))
        num = sum(a.size for a in arrays.values())
        scale = 0.01 * size / np.sqrt(num)
        noisy.append((model, {n: a + rng.normal(0, scale, a.shape) for n, a in arrays.items()}))
    single.append(error_with("noise", noisy[0][1]))
    together = error_with("noise", noisy[0][1], [Sight(m, a) for m, a in noisy[1:]])
    assert together < single[0]


def test_precode_must_be_named() -> None:
    _, arrays, _, _ = sent()
    with pytest.raises(InputError, match="bottleneck must be named"):
        adapt(preset("second_order"), "precode", arrays)


def test_soteria_without_its_trace_is_refused() -> None:
    _, arrays, _, _ = sent()
    with pytest.raises(InputError, match="no dense layer's gradient has columns that are 0"):
        adapt(preset("second_order"), "soteria", arrays)

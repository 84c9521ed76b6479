"""Spans of inputs: exact up to float32 rounding, and marked as estimates where there is noise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks.federated.spans import residuals, row_space
from fl_audit.errors import InputError

SEED = 20_261_123


def trained(
    inputs: NDArray[np.float64], *, out: int = 128, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """Update and weight of a layer that saw `inputs`, rounded to float32 as a client's reply is."""
    weight = rng.normal(0, 0.1, (out, inputs.shape[1])).astype(np.float32)
    delta = rng.normal(0, 1e-2, (out, len(inputs)))
    after = (weight + delta @ inputs).astype(np.float32)
    return after.astype(np.float64) - weight, delta.sum(axis=1), weight


def test_members_have_no_residual_and_others_do() -> None:
    rng = np.random.default_rng(SEED)
    inputs = rng.random((30, 64))
    update, bias, weight = trained(inputs, rng=rng)
    space = row_space(update, bias, weight)
    assert space.has_gap
    assert space.basis.shape == (65, 30)
    assert residuals(space, inputs).max() < 1e-4
    assert residuals(space, rng.random((200, 64))).min() > 1e-2


def test_blank_inputs_do_not_hide_the_gap() -> None:
    rng = np.random.default_rng(SEED)
    inputs = rng.random((30, 64))
    inputs[:, 40:] = 0  # pixels that are never inked
    update, bias, weight = trained(inputs, rng=rng)
    space = row_space(update, bias, weight)
    assert space.has_gap
    assert residuals(space, inputs).max() < 1e-4


def test_noise_leaves_no_gap() -> None:
    rng = np.random.default_rng(SEED)
    update, bias, weight = trained(rng.random((30, 64)), rng=rng)
    noisy = update + rng.normal(0, 0.01, update.shape)
    assert not row_space(noisy, bias, weight).has_gap


def test_noise_that_drowns_everything_still_gives_an_estimate() -> None:
    rng = np.random.default_rng(SEED)
    _, bias, weight = trained(rng.random((30, 64)), rng=rng)
    space = row_space(rng.normal(0, 1, weight.shape), bias, weight)
    assert not space.has_gap
    assert space.rank >= 1


def test_rounding_alone_spans_nothing() -> None:
    rng = np.random.default_rng(SEED)
    weight = rng.normal(0, 0.1, (32, 8)).astype(np.float32)
    space = row_space(rng.normal(0, 1e-9, weight.shape), None, weight)
    assert space.has_gap
    assert space.rank == 0


def test_zero_update_is_refused() -> None:
    with pytest.raises(InputError, match="not trained"):
        row_space(np.zeros((8, 4)), np.zeros(8), np.ones((8, 4), dtype=np.float32))

"""Inversion of a dense layer: exact for one example, silent about mixtures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attacks.audit import audit_run
from attacks.reconstruction.linear import invert_linear, rank_one_residual
from attacks.reconstruction.metrics import psnr
from fl_audit.errors import InputError
from fl_audit.game import read_truth
from fl_audit.results import ReconstructionResult
from fl_audit.run_directory import RunDirectory

SEED = 20_261_123


def test_one_example_comes_back_whatever_the_scale() -> None:
    rng = np.random.default_rng(SEED)
    inputs, signal = rng.random(64), rng.normal(size=128)
    for scale in (1.0, -0.1):  # a gradient, and an update of learning rate 0.1
        found = invert_linear(scale * np.outer(signal, inputs), scale * signal)
        np.testing.assert_allclose(found, inputs, atol=1e-14)


def test_least_squares_bears_noise_better_than_the_strongest_row() -> None:
    rng = np.random.default_rng(SEED)
    inputs, signal = rng.random(64), rng.normal(size=128)
    noisy = np.outer(signal, inputs) + rng.normal(0, 0.1, (128, 64))
    best = int(np.abs(signal).argmax())
    assert psnr(invert_linear(noisy, signal), inputs) > psnr(noisy[best] / signal[best], inputs)


def test_a_mixture_is_recognised_without_the_truth() -> None:
    rng = np.random.default_rng(SEED)
    weight = rng.normal(size=(128, 2)) @ rng.random((2, 64))
    bias = rng.normal(size=128)
    assert rank_one_residual(weight, bias, invert_linear(weight, bias)) > 0.1


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (np.ones((3, 2)), np.ones(2), "shapes"),
        (np.full((3, 2), np.nan), np.ones(3), "finite"),
        (np.ones((3, 2)), np.zeros(3), "no gradient"),
    ],
)
def test_bad_gradients_are_refused(weight: np.ndarray, bias: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        invert_linear(weight, bias)


def test_fifty_digits_come_back_from_real_flower_rounds(fedsgd_run: Path) -> None:
    (result,) = audit_run(fedsgd_run, attacks=["linear_inversion"])
    assert isinstance(result, ReconstructionResult)
    targets = read_truth(RunDirectory.open(fedsgd_run)).targets
    errors = []
    for target in targets:
        key = f"round_{target.round:04d}/client_{target.client}/reconstruction"
        errors.append(np.abs(result.arrays[key].astype(np.float64) - target.inputs).max())
    assert len(errors) == 50
    assert max(errors) < 1e-5


def test_epochs_of_many_examples_are_left_alone(digits_run: Path) -> None:
    (result,) = audit_run(digits_run, attacks=["linear_inversion"])
    assert isinstance(result, ReconstructionResult)
    assert result.record.num_targets == 0
    assert "30 updates are not explained by a single example" in " ".join(result.record.notes)

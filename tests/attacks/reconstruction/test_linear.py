"""Inversion of a dense layer: exact for one example, silent about mixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from attacks.audit import audit_run
from attacks.reconstruction.linear import invert_linear, rank_one_residual
from attacks.reconstruction.metrics import psnr
from fl_audit.errors import InputError
from fl_audit.game import read_truth
from fl_audit.results import ReconstructionResult
from fl_audit.run_directory import RunDirectory
from simulations.data.builtin import tiles

SEED = 20_261_123


def test_one_example_comes_back_whatever_the_scale() -> None:
    rng = np.random.default_rng(SEED)
    inputs, signal = rng.random(64), rng.normal(size=128)
    for scale in (1.0, -0.1):  # a gradient, and an update of learning rate 0.1
        found = invert_linear(scale * np.outer(signal, inputs), scale * signal)
        np.testing.assert_allclose(found, inputs, atol=1e-14)


def test_tensors_serve_as_well_as_arrays() -> None:
    rng = np.random.default_rng(SEED)
    inputs, signal = rng.random(64), rng.normal(size=128)
    weight = torch.from_numpy(np.outer(signal, inputs)).requires_grad_()
    found = invert_linear(weight, torch.from_numpy(signal))
    np.testing.assert_allclose(found, inputs, atol=1e-14)


def test_least_squares_bears_noise_better_than_the_strongest_row() -> None:
    rng = np.random.default_rng(SEED)
    inputs, signal = rng.random(64), rng.normal(size=128)
    noisy = np.outer(signal, inputs) + rng.normal(0, 0.1, (128, 64))
    best = int(np.abs(signal).argmax())
    assert psnr(invert_linear(noisy, signal), inputs) > psnr(noisy[best] / signal[best], inputs)


def test_the_rank_one_fit_is_not_pulled_to_zero_by_noise_in_the_bias() -> None:
    """Noise on both gradients: least squares over the rows shrinks the input, this does not."""
    rng = np.random.default_rng(SEED)
    inputs, signal = rng.random(640), rng.normal(size=1280)
    weight = np.outer(signal, inputs) + rng.normal(0, 0.5, (1280, 640))
    bias = signal + rng.normal(0, 0.5, 1280)
    squares = weight.T @ bias / (bias @ bias)
    found = invert_linear(weight, bias)
    assert psnr(found, inputs) > psnr(squares, inputs) + 3
    exact = np.linalg.svd(np.column_stack([weight, bias]), full_matrices=False)[2][0]
    np.testing.assert_allclose(found, exact[:-1] / exact[-1], atol=1e-12)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 140.0), (torch.float32, 120.0)])
def test_a_photograph_comes_back_from_a_wide_net(dtype: torch.dtype, least: float) -> None:
    torch.manual_seed(0)
    first = torch.nn.Linear(3072, 1024)
    net = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(1024, 10)).to(dtype)
    picture = tiles().records.inputs[100].reshape(1, -1)
    logits = net(torch.from_numpy(picture).to(dtype))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([3]))
    weight, bias = torch.autograd.grad(loss, [first.weight, first.bias])
    found = invert_linear(weight.double().numpy(), bias.double().numpy())
    assert psnr(found, picture[0].astype(np.float64)) >= least


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


def test_a_client_inverts_the_only_other_one(run_tables: Callable[..., Path]) -> None:
    run = run_tables(
        "two-clients",
        federation={"clients": 2, "rounds": 3},
        training={"algorithm": "fedsgd", "batch_size": 1},
    )
    local = {"name": "local_linear_inversion", "seat": 0}
    (result,) = audit_run(run, attacks=[local])
    assert isinstance(result, ReconstructionResult), result.record
    assert result.record.num_targets == 3
    assert result.record.metrics["psnr_db"].value > 80  # two float32 averages round the sum
    (result,) = audit_run(run, attacks=["local_linear_inversion"])
    assert isinstance(result, ReconstructionResult), result.record
    assert result.record.num_targets == 0  # sums of two different digits

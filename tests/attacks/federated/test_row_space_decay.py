"""What weight decay adds: equal to torch's optimizer, and found without knowing anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attacks.federated.row_space_decay import decay_multiple, fitted_multiple
from attacks.federated.spans import rounding_level, span_of, with_bias
from fl_audit.local_training import LocalTraining
from fl_audit.records import Records
from simulations.training import train

SEED = 20_261_125
TRAININGS = [
    LocalTraining(weight_decay=5e-4),
    LocalTraining(weight_decay=5e-4, momentum=0.9),
    LocalTraining(weight_decay=5e-3, proximal_mu=0.3),
    LocalTraining(weight_decay=5e-3, proximal_mu=0.3, momentum=0.9, learning_rate=0.05),
    LocalTraining(weight_decay=1e-3, schedule="exponential", decay=0.5),
    LocalTraining(weight_decay=1e-2, algorithm="fedsgd"),
    LocalTraining(proximal_mu=0.3, momentum=0.5),
]


def test_plain_sgd_has_a_closed_form() -> None:
    training = LocalTraining(learning_rate=0.1, weight_decay=5e-4)
    found = decay_multiple(training, server_round=1, steps=4)
    assert found == pytest.approx((1 - 0.1 * 5e-4) ** 4 - 1, rel=1e-12)


@pytest.mark.parametrize("training", TRAININGS)
def test_it_is_what_torch_does_to_weights_without_gradient(training: LocalTraining) -> None:
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.SGD(
        [weight],
        lr=training.learning_rate_in(3),
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    for _ in range(7):
        weight.grad = training.proximal_mu * (weight.detach() - start)
        optimizer.step()
    multiple = decay_multiple(training, server_round=3, steps=7)
    torch.testing.assert_close(weight.detach(), (1 + multiple) * start)


def trained(
    training: LocalTraining, *, num_inputs: int, width: int, num: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float, int]:
    """[ΔW, Δb], [W, b], rounding level and steps of a first layer that was really trained."""
    rng = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    model = torch.nn.Sequential(
        torch.nn.Linear(num_inputs, width), torch.nn.ReLU(), torch.nn.Linear(width, 3)
    )
    inputs = rng.random((num, num_inputs)).astype(np.float32)
    records = Records(np.arange(num), inputs, rng.integers(3, size=num))
    before = [p.detach().clone().numpy() for p in model[0].parameters()]
    train(model, records, training, server_round=1, rng=rng)
    after = [p.detach().numpy().astype(np.float64) for p in model[0].parameters()]
    update = with_bias(after[0] - before[0], after[1] - before[1])
    return update, with_bias(before[0], before[1]), rounding_level(before[0]), training.steps(num)


@pytest.mark.parametrize(("num_inputs", "width"), [(40, 64), (120, 50), (40, 41)])
@pytest.mark.parametrize("training", TRAININGS)
def test_known_and_fitted_agree_on_real_training(
    training: LocalTraining, num_inputs: int, width: int
) -> None:
    """Narrow, wide and square layers; 25 examples (or one batch of 20) behind the update."""
    update, weights, level, steps = trained(training, num_inputs=num_inputs, width=width, num=25)
    known = decay_multiple(training, server_round=1, steps=steps)
    fitted = fitted_multiple(update, weights, level)
    assert fitted == pytest.approx(known, abs=1e-6)
    for multiple in (known, fitted):
        space = span_of(update - multiple * weights, level)
        assert space.has_gap
        assert space.rank == (20 if training.algorithm == "fedsgd" else 25)


@pytest.mark.parametrize("shape", [(64, 41), (41, 41), (30, 41)])
def test_nothing_is_fitted_to_noise(shape: tuple[int, int]) -> None:
    """One free number cannot make two singular values of noise vanish."""
    rng = np.random.default_rng(SEED)
    weights = rng.normal(0, 0.1, shape)
    assert fitted_multiple(rng.normal(0, 0.01, shape), weights, 1e-8) is None

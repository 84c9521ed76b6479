"""What a client would have sent: against plain torch, and against the simulator's real training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from attacks.reconstruction.optimisation.plan import LocalPlan
from attacks.reconstruction.optimisation.simulation import (
    LocalSteps,
    OneGradient,
    effective_steps,
    pseudo_gradient,
)
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining
from fl_audit.records import Records
from simulations.training import batches, train
from tests.attacks.reconstruction.optimisation import nets

LABELS = torch.tensor([0, 2, 1, 1, 0])
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_one_gradient_is_that_of_plain_torch() -> None:
    model, inputs = nets.dense(), nets.batch(5, 12)
    expected = nets.flat(nets.gradient(model, inputs, LABELS))
    simulation = OneGradient(model, NAMES)
    close(torch.cat([g.reshape(-1) for g in simulation(inputs, LABELS)]).detach(), expected)
    close(simulation.pure(inputs, LABELS), expected)


def test_soft_labels_of_certainty_are_classes() -> None:
    model, inputs = nets.dense(), nets.batch(5, 12)
    simulation = OneGradient(model, NAMES)
    soft = torch.nn.functional.one_hot(LABELS, 3).double()
    close(simulation.pure(inputs, soft), simulation.pure(inputs, LABELS))


TRAININGS = [
    {"local_epochs": 1, "batch_size": 5},
    {"local_epochs": 3, "batch_size": 2},  # the last batch of an epoch holds one example
    {"local_epochs": 2, "batch_size": 2, "momentum": 0.9},
    {"local_epochs": 2, "batch_size": 3, "weight_decay": 0.05},
    {"local_epochs": 2, "batch_size": 2, "proximal_mu": 0.7, "momentum": 0.5, "weight_decay": 0.01},
]


@pytest.mark.parametrize("fields", TRAININGS)
def test_unrolled_steps_are_those_of_real_training(fields: dict[str, Any]) -> None:
    """Batches shuffled by the simulator; the simulation is given the inputs in that order."""
    training = LocalTraining(learning_rate=0.3, **fields)
    model, inputs = nets.dense(), nets.batch(5, 12)
    trained = copy.deepcopy(model)
    double: Any = inputs.numpy()
    records = Records(np.arange(5), double, LABELS.numpy())
    rng = np.random.default_rng(3)
    order = np.concatenate(list(batches(5, training, rng=np.random.default_rng(3))))
    train(trained, records, training, server_round=1, rng=rng)
    update = {
        name: (after - before).detach()
        for (name, after), before in zip(
            trained.named_parameters(), model.parameters(), strict=True
        )
    }
    steps = training.steps(5)
    expected = nets.flat(pseudo_gradient(update, 0.3, steps, training.momentum))
    rows = LocalPlan(training, 0.3, 5).batches()
    assert len(rows) == steps
    simulation = LocalSteps(model, NAMES, training, 0.3, rows)
    searched, labels = inputs[order], LABELS[torch.from_numpy(order)]
    close(simulation.pure(searched, labels), expected)
    close(torch.cat([g.reshape(-1) for g in simulation(searched, labels)]).detach(), expected)


def test_one_unrolled_step_is_one_gradient_for_any_rate() -> None:
    model, inputs = nets.dense(), nets.batch(5, 12)
    expected = OneGradient(model, NAMES).pure(inputs, LABELS)
    for rate in (0.01, 3.0):
        training = LocalTraining(momentum=0.9)
        found = LocalSteps(model, NAMES, training, rate, [torch.arange(5)]).pure(inputs, LABELS)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_derivatives_go_through_every_step() -> None:
    """An input that only the first step sees changes the later ones, too: finite differences."""
    model, inputs = nets.dense(), nets.batch(5, 12)
    training = LocalTraining(learning_rate=2.0, momentum=0.5, local_epochs=1, batch_size=2)
    rows = LocalPlan(training, 2.0, 5).batches()
    simulation = LocalSteps(model, NAMES, training, 2.0, rows)
    direction = torch.zeros_like(inputs)
    direction[0, 3] = 1
    at = inputs.clone().requires_grad_()
    ramp = torch.linspace(-1, 1, 131, dtype=torch.float64)
    total = torch.cat([g.reshape(-1) for g in simulation(at, LABELS)]).dot(ramp)
    (slope,) = torch.autograd.grad(total, at)
    ahead, behind = (
        simulation.pure(inputs + step * direction, LABELS).dot(ramp) for step in (1e-5, -1e-5)
    )
    assert float(slope[0, 3]) == pytest.approx(float((ahead - behind) / 2e-5), rel=1e-6)


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.9), (7, 0.0), (7, 0.9), (3, 0.5)])
def test_effective_steps_sum_the_moves_of_a_constant_gradient(steps: int, momentum: float) -> None:
    moved, velocity = 0.0, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1
        moved += velocity
    assert effective_steps(steps, momentum) == pytest.approx(moved, rel=1e-12)


def test_pseudo_gradient_points_against_the_update() -> None:
    found = pseudo_gradient({"weight": np.array([2.0, -4.0])}, 0.5, steps=4)
    np.testing.assert_allclose(found["weight"], [-1.0, 2.0])


def test_updates_that_say_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="above 0"):
        pseudo_gradient({}, 0.0)
    with pytest.raises(InputError, match="at least 1"):
        pseudo_gradient({}, 0.1, steps=0)


def test_a_parameter_that_plays_no_part_has_gradient_zero() -> None:
    class Idle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = torch.nn.Linear(12, 3)
            self.idle = torch.nn.Parameter(torch.ones(2))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.used(inputs)

    model, inputs = Idle().double(), nets.batch(5, 12)
    names = tuple(name for name, _ in model.named_parameters())
    training = LocalTraining(batch_size=2, local_epochs=1)
    rows = LocalPlan(training, 0.1, 5).batches()
    for simulation in (OneGradient(model, names), LocalSteps(model, names, training, 0.1, rows)):
        found = dict(zip(names, simulation(inputs, LABELS), strict=True))
        assert not found["idle"].any()
        parts = torch.cat([g.reshape(-1) for g in found.values()]).detach()
        close(simulation.pure(inputs, LABELS), parts)

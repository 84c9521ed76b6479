"""What a client would have sent for given inputs: one gradient, or several local steps unrolled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.func import functional_call

from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining

Tensor = torch.Tensor
Tensors = dict[str, Tensor]
Loss = Callable[[Tensors], Tensor]


class Simulation(Protocol):
    """From inputs and labels to the gradient that an update stands for."""

    @property
    def model(self) -> torch.nn.Module:
        """The received model."""
        ...

    def __call__(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """Gradients by parameter, in the model's order, differentiable in inputs and labels."""
        ...

    def pure(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The same, flat, for functional transforms."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class OneGradient:
    """Gradient of the mean cross-entropy at the received model.

    Attributes:
        model: In the mode (train or eval) in which the client's was.
        names: Its parameters, in order.
    """

    model: torch.nn.Module
    names: tuple[str, ...]

    def __call__(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """As `Simulation`; labels are classes (b,) or probabilities (b, classes)."""
        loss = torch.nn.functional.cross_entropy(self.model(inputs), labels)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        ]

    def pure(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The same by functional transforms, flat: for vmap and forward mode."""
        parameters = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        buffers = dict(self.model.named_buffers())

        def loss(weights: Tensors) -> Tensor:
            output = functional_call(self.model, {**weights, **buffers}, (inputs,))
            return torch.nn.functional.cross_entropy(output, labels)

        found: Any = torch.func.grad(loss)(parameters)
        return torch.cat([found[name].reshape(-1) for name in self.names])


@dataclass(frozen=True, slots=True, eq=False)
class LocalSteps:
    """Mean gradient along a client's local steps, as `pseudo_gradient` reads it off its update.

    Attributes:
        model: The architecture with the received weights.
        names: Its parameters, in order.
        training: Learning rate, momentum, decay and proximal term.
        rate: Learning rate of the round.
        batches: Rows of the inputs in each step, in order.
    """

    model: torch.nn.Module
    names: tuple[str, ...]
    training: LocalTraining
    rate: float
    batches: Sequence[Tensor]

    def __call__(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """As `Simulation`: unrolled, so that derivatives go through every step."""

        def gradient(loss: Loss, weights: Tensors) -> list[Tensor | None]:
            value, leaves = loss(weights), list(weights.values())
            return list(torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True))

        start: Tensors = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        return self._unroll(start, gradient, inputs, labels)

    def pure(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The same by functional transforms, flat: for forward mode."""

        def gradient(loss: Loss, weights: Tensors) -> list[Tensor | None]:
            found: Any = torch.func.grad(loss)(weights)
            return list(found.values())

        start = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        parts = self._unroll(start, gradient, inputs, labels)
        return torch.cat([part.reshape(-1) for part in parts])

    def _unroll(
        self,
        start: Tensors,
        gradient: Callable[[Loss, Tensors], list[Tensor | None]],
        inputs: Tensor,
        labels: Tensor,
    ) -> list[Tensor]:
        buffers = dict(self.model.named_buffers())
        weights, velocity = dict(start), dict[str, Tensor]()
        for rows in self.batches:

            def loss(given: Tensors, rows: Tensor = rows) -> Tensor:
                output = functional_call(self.model, {**given, **buffers}, (inputs[rows],))
                return torch.nn.functional.cross_entropy(output, labels[rows])

            found = gradient(loss, weights)
            for (name, weight), g in zip(weights.items(), found, strict=True):
                whole = self._whole(g, weight, start[name])
                before = velocity.get(name)
                kept = None if before is None else self.training.momentum * before
                velocity[name] = whole if kept is None else kept + whole
            weights = {name: weights[name] - self.rate * velocity[name] for name in weights}
        scale = self.rate * effective_steps(len(self.batches), self.training.momentum)
        return [(start[name] - weights[name]) / scale for name in self.names]

    def _whole(self, gradient: Tensor | None, weight: Tensor, start: Tensor) -> Tensor:
        """The gradient of the loss with decay and the proximal term."""
        found = torch.zeros_like(weight) if gradient is None else gradient
        if self.training.weight_decay:
            found = found + self.training.weight_decay * weight
        if self.training.proximal_mu:
            found = found + self.training.proximal_mu * (weight - start)
        return found


def effective_steps(steps: int, momentum: float) -> float:
    """How many learning rates the sum of equal gradients moves weights by, in `steps` steps.

    Heavy-ball momentum m: step s adds (1 - m^(T-s+1)) / (1 - m).
    """
    if momentum == 0:
        return float(steps)
    return float(sum((1 - momentum ** (s + 1)) / (1 - momentum) for s in range(steps)))


def pseudo_gradient(
    update: Mapping[str, Any],
    learning_rate: float,
    steps: int = 1,
    momentum: float = 0.0,
) -> dict[str, Any]:
    """An update read as a gradient: -update / (learning rate * effective steps).

    Exact for one step of SGD; for several, the mean of the gradients along the way, of which the
    first is the gradient at the received model. Weight decay and a proximal term stay in it.

    Args:
        update: Parameters after minus before, by name.
        learning_rate: Of the local optimiser.
        steps: Local steps.
        momentum: Heavy-ball, in [0, 1).

    Raises:
        InputError: If the learning rate is not positive, or there is no step.
    """
    if not learning_rate > 0:
        raise InputError(
            "learning_rate", learning_rate, "must be above 0", "Nothing moves at 0: leave it out."
        )
    if steps < 1:
        raise InputError("steps", steps, "must be at least 1", "Give the number of local steps.")
    scale = learning_rate * effective_steps(steps, momentum)
    return {name: -value / scale for name, value in update.items()}

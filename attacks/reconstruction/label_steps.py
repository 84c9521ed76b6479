"""Several local steps: where on the way between two models a mean gradient was taken.

The gradient that an update stands for is a mean over the models of a client's local steps. The
adversary sees the first and the last model, and the straight line between them stands for the way:
good where steps are small. Or it trains on its own records, in the client's class shares as far as
they are known, and takes the mean softmax of that. Long steps that overshoot are then imitated.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.reconstruction.label_softmax import without_dropout
from attacks.reconstruction.optimisation.simulation import effective_steps, pseudo_gradient
from attacks.reconstruction.resimulation import simulated_update
from attacks.rounding import apportion
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining

Values = NDArray[np.float64]
Correction = Literal["path", "simulated", "none"]


@dataclass(frozen=True, slots=True)
class LocalWork:
    """The local steps of a client in one round.

    Attributes:
        training: Batch size, epochs, momentum, weight decay, proximal term.
        rate: Learning rate of the round.
        num_examples: Records of the client; of the mean client behind a sum.
        correction: What the softmax is averaged over: "path": models on the line to the returned
            one, asked about the proxies; "simulated": batches of a training on the proxies, played
            until it gives the observed gradient; "none": the received model alone.
        at_most: Models on the line.

    Raises:
        InputError: If the learning rate is not positive, or there is no record.
    """

    training: LocalTraining
    rate: float
    num_examples: int
    correction: Correction = "path"
    at_most: int = 5

    def __post_init__(self) -> None:
        if not self.rate > 0 or self.num_examples < 1 or self.at_most < 1:
            raise InputError(
                "work",
                (self.rate, self.num_examples, self.at_most),
                "needs a learning rate above 0, at least one example and one model on the line",
                "Give what the client trained with.",
            )

    @property
    def steps(self) -> int:
        """Local steps."""
        return self.training.steps(self.num_examples)

    @property
    def scale(self) -> float:
        """What a constant gradient is multiplied by to give minus the update."""
        return self.rate * effective_steps(self.steps, self.training.momentum)

    @property
    def places(self) -> list[Stop]:
        """Where the softmax is taken."""
        if self.correction == "none":
            return [Stop(0.0, 1.0)]
        return stops(self.steps, self.training.momentum, self.at_most)

    def without_decay(self, gradient: Values, received: Values) -> Values:
        """The loss's part of a pseudo-gradient: weight decay and the proximal term taken out."""
        places = stops(self.steps, self.training.momentum, 1)
        away = -places[0].position * self.scale * gradient
        decay = self.training.weight_decay * (received + away)
        found: Values = gradient - decay - self.training.proximal_mu * away
        return found


@dataclass(frozen=True, slots=True)
class Stop:
    """A place on the way from the received model to the returned one.

    Attributes:
        position: Share of the way, in [0, 1); 0 is the received model.
        weight: Share of the mean gradient that was taken around here.
    """

    position: float
    weight: float


def stops(steps: int, momentum: float, at_most: int) -> list[Stop]:
    """Where on a straight way `steps` gradients of equal size are taken, grouped into few places.

    With momentum an early gradient moves the weights in every later step, so it weighs more.
    """
    times = range(steps)
    total = effective_steps(steps, momentum)
    position = np.array([effective_steps(t, momentum) if t else 0.0 for t in times]) / total
    weight = np.array([(1 - momentum ** (steps - t)) / (1 - momentum) for t in times]) / total
    groups = np.array_split(np.arange(steps), min(steps, at_most))
    return [
        Stop(float(np.average(position[g], weights=weight[g])), float(weight[g].sum()))
        for g in groups
    ]


def models_along(
    model: torch.nn.Module, update: Mapping[str, Any], places: Sequence[Stop]
) -> Iterator[torch.nn.Module]:
    """Copies of the model with that share of the update added; the model is left as it is."""
    moved = copy.deepcopy(model)
    start = {name: p.detach() for name, p in model.named_parameters()}
    for place in places:
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                if name in update and place.position:
                    step = torch.as_tensor(update[name]).to(parameter)
                    parameter.copy_(start[name] + place.position * step)
        yield moved


def simulated_gradient(
    model: torch.nn.Module,
    proxies: torch.Tensor,
    labels: NDArray[np.int64] | None,
    shares: Values,
    work: LocalWork,
    *,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], Values]:
    """Pseudo-gradient of a client that holds proxies in these class shares.

    A proxy whose class is not known, or is none of the wanted, gets a label that it may not have.

    Returns:
        The gradient by parameter name, and the shares as far as whole records make them.
    """
    counts = apportion(shares, work.num_examples)
    if labels is None:
        rows = _drawn(np.arange(len(proxies)), work.num_examples, rng)
    else:
        each = [_rows_of(labels, label) for label in range(len(counts))]
        rows = np.concatenate([_drawn(r, n, rng) for r, n in zip(each, counts, strict=True)])
    classes = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(proxies.device)
    inputs = proxies[torch.from_numpy(rows).to(proxies.device)]
    own = without_dropout(model)
    update = simulated_update(own, inputs, classes, work.training, work.rate, rng=rng)
    found = pseudo_gradient(update, work.rate, work.steps, work.training.momentum)
    return found, counts / work.num_examples


def _rows_of(labels: NDArray[np.int64], label: int) -> NDArray[np.int64]:
    rows = np.flatnonzero(labels == label)
    return rows if len(rows) else np.arange(len(labels))


def _drawn(rows: NDArray[np.int64], number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many of the rows, each once where there are enough."""
    found: NDArray[np.int64] = rng.choice(rows, size=number, replace=number > len(rows))
    return found

"""Class shares from a last layer's gradient: which models the softmax is averaged over, and where.

A bias is read as it is. A weight is projected on the mean feature vector, scaled so that this
vector itself gives 1: then it is a bias whose input is 1 on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.reconstruction.label_layer import LastLayer, values_of
from attacks.reconstruction.label_shares import class_shares, mean_by_class
from attacks.reconstruction.label_softmax import answers
from attacks.reconstruction.label_steps import LocalWork, Stop, models_along, simulated_gradient
from fl_audit.errors import InputError

Values = NDArray[np.float64]
_PASSES = 4  # trainings on proxies, each in the class shares that the one before gave


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A last layer's gradient, and what to read it with."""

    model: torch.nn.Module
    layer: LastLayer
    gradients: Mapping[str, Any]
    proxies: torch.Tensor
    labels: NDArray[np.int64] | None
    batch: int
    work: LocalWork | None

    def shares(self, generator: torch.Generator | None) -> tuple[Values, Values]:
        """Class shares, and the standard deviation of the softmax between proxies."""
        work = self.work
        if work is None or work.steps == 1 or work.correction == "none":
            return self._along({}, [Stop(0.0, 1.0)])
        if work.correction == "path":
            names = [n for n, p in self.model.named_parameters() if p.requires_grad]
            update = {n: -work.scale * values_of(self.gradients, n) for n in names}
            return self._along(update, work.places)
        return self._simulated(work, needed(generator))

    def _simulated(self, work: LocalWork, generator: torch.Generator) -> tuple[Values, Values]:
        """The shares with the mean softmax of a training on the proxies.

        There it is known: gradient plus shares. Each pass trains in the shares of the one before.
        Weight decay and the proximal term are in both gradients, and cancel.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        shares, spread = self._along({}, [Stop(0.0, 1.0)])
        direction = self._direction()
        seen = _projected(values_of(self.gradients, self.source), direction)
        for _ in range(_PASSES):
            gradients, had = simulated_gradient(
                self.model, self.proxies, self.labels, shares, work, rng=rng
            )
            played = _projected(values_of(gradients, self.source), direction)
            shares = class_shares(seen, np.tile(played + had, (self.layer.classes, 1)))
        return shares, spread

    def _along(self, update: Mapping[str, Any], places: Sequence[Stop]) -> tuple[Values, Values]:
        """The shares with the softmax averaged over models on the way of an update."""
        gradient, direction = self.loss_gradient(), self._direction()
        classes = self.layer.classes
        rows, inputs = np.zeros((classes, classes)), np.zeros(classes)
        spread = np.zeros(classes)
        for place, model in zip(places, models_along(self.model, update, places), strict=True):
            softmax, features = answers(model, self.proxies, self.layer, batch=self.batch)
            labels = None if self.labels is None else self.labels[: len(softmax)]
            seen = np.ones(len(softmax))
            if direction is not None and features is not None:
                seen = features @ direction
            weighted = softmax * seen[:, None]
            rows += place.weight * mean_by_class(weighted, labels, classes)
            inputs += place.weight * mean_by_class(seen[:, None], labels, classes)[:, 0]
            spread += place.weight * weighted.std(axis=0)
        return class_shares(_projected(gradient, direction), rows, inputs), spread

    def _direction(self) -> Values | None:
        """The direction in which the mean feature vector measures 1; None where a bias is read."""
        if self.source == self.layer.bias:
            return None
        _, features = answers(self.model, self.proxies, self.layer, batch=self.batch)
        mean: Values = np.zeros(1) if features is None else features.mean(axis=0)
        power = float(mean @ mean)
        if power == 0:
            raise InputError(
                "model",
                self.layer.weight,
                "without a bias, its last layer must see one vector of each record, and not only "
                "zeros",
                "Give a model that ends in one dense layer, best one with a bias.",
            )
        return mean / power

    def loss_gradient(self) -> Values:
        """The cross-entropy's part of a gradient.

        Raises:
            InputError: If it is all zero.
        """
        name = self.source
        gradient = values_of(self.gradients, name)
        if not gradient.any():
            raise InputError(
                f"gradients[{name!r}]",
                "all zeros",
                "the last layer received no gradient, so nothing can be read from it",
                "Choose a round in which the client trained this layer.",
            )
        if self.work is None:
            return gradient
        received = dict(self.model.named_parameters())[name].detach().double().cpu().numpy()
        return self.work.without_decay(gradient, received)

    @property
    def source(self) -> str:
        """The parameter that labels are read from: the bias, or the weight where there is none."""
        bias = self.layer.bias
        return self.layer.weight if bias is None or bias not in self.gradients else bias


def needed(generator: torch.Generator | None) -> torch.Generator:
    """The generator, where something is drawn.

    Raises:
        InputError: If there is none.
    """
    if generator is None:
        raise InputError(
            "generator",
            None,
            "noise or a simulation of local steps is drawn, and nothing says from where",
            "Give generator=torch.Generator().manual_seed(...), or proxy_inputs.",
        )
    return generator


def _projected(gradient: Values, direction: Values | None) -> Values:
    result: Values = gradient if direction is None else gradient @ direction
    return result

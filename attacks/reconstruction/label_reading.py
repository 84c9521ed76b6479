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
from attacks.reconstruction.label_steps import LocalWork, Stop, models_along, simulated_way
from fl_audit.errors import InputError

Values = NDArray[np.float64]


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
        first, _ = self._along({}, [Stop(0.0, 1.0)])
        simulated = simulated_way(
            self.model, self.proxies, self.labels, first, work, generator=needed(generator)
        )
        return self._along(simulated, work.places)

    def _along(self, update: Mapping[str, Any], places: Sequence[Stop]) -> tuple[Values, Values]:
        """The shares with the softmax averaged over models on the way of an update."""
        is_bias = self.source == self.layer.bias
        gradient = self.loss_gradient()
        classes = self.layer.classes
        direction: Values | None = None
        rows, inputs = np.zeros((classes, classes)), np.zeros(classes)
        spread = np.zeros(classes)
        for place, model in zip(places, models_along(self.model, update, places), strict=True):
            found = answers(
                model, self.proxies, self.layer, batch=self.batch, with_features=not is_bias
            )
            own = None if self.labels is None else self.labels[: len(found.softmax)]
            if found.features is not None and direction is None:
                direction = _towards(found.features.mean(axis=0))
            seen = np.ones(len(found.softmax))
            if found.features is not None and direction is not None:
                seen = found.features @ direction
            weighted = found.softmax * seen[:, None]
            rows += place.weight * mean_by_class(weighted, own, classes)
            inputs += place.weight * mean_by_class(seen[:, None], own, classes)[:, 0]
            spread += place.weight * weighted.std(axis=0)
        target = gradient if direction is None else gradient @ direction
        return class_shares(target, rows, inputs), spread

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


def _towards(mean: Values) -> Values:
    """The direction in which the mean feature vector measures 1."""
    power = float(mean @ mean)
    if power == 0:
        raise InputError(
            "model",
            "its last layer sees zeros only",
            "a weight gradient of zero features says nothing",
            "Choose another round, or a model with a bias in its last layer.",
        )
    return mean / power

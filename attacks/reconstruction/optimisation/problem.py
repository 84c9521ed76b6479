"""The function that is minimised: how far the gradient of candidate inputs is from what was seen.

A step takes the gradient of a gradient, and asks autograd for the inputs' part only. Restarts on a
small model, where the time goes into launching operations, are one batch by vmap; on a large one
they take turns, because per-restart weight gradients become grouped convolutions, which are slow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.convolutions import quick_convolutions
from attacks.reconstruction.optimisation.objectives import Objective
from attacks.reconstruction.optimisation.regularisers import (
    Moments,
    batch_moments,
    input_penalty,
    moments_penalty,
)
from attacks.reconstruction.optimisation.simulation import OneGradient, Simulation

Tensor = torch.Tensor
VMAP_PARAMETERS = 200_000  # above, memory and not dispatch is the limit: restarts take turns


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Where a search is: inputs, and the logits of soft labels if labels are searched, too.

    Attributes:
        inputs: Shape (restarts, b, ...).
        logits: Shape (restarts, b, classes), or None.
    """

    inputs: Tensor
    logits: Tensor | None = None

    def first(self) -> Point:
        """Its first restart alone."""
        return Point(self.inputs[:1], None if self.logits is None else self.logits[:1])

    def parts(self) -> list[Tensor]:
        """The tensors that are searched."""
        return [self.inputs] if self.logits is None else [self.inputs, self.logits]


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What is minimised.

    Attributes:
        sights: Pairs of what simulates an update and the distance to the observed one; several
            where a client sent updates of the same data at several models.
        labels: Classes, shape (b,); None where soft labels are searched.
        config: Weights of the penalties.
        moments: Wanted BatchNorm statistics by layer, or None.
        decode: From what is searched to the model's inputs; the identity for pictures.
        prior: One more penalty on what is searched, or None.
    """

    sights: Sequence[tuple[Simulation, Objective]]
    labels: Tensor | None
    config: InversionConfig
    moments: Sequence[Moments] | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    prior: Callable[[Tensor], Tensor] | None = None
    evaluations: list[int] = field(default_factory=lambda: [0])
    room: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def batches_restarts(self) -> bool:
        """Whether restarts are one batch."""
        simulation = self.sights[0][0]
        if len(self.sights) > 1 or not isinstance(simulation, OneGradient):
            return False
        size = sum(p.numel() for p in simulation.model.parameters())
        return self.moments is None and size < VMAP_PARAMETERS

    def evaluate(self, point: Point) -> tuple[Tensor, list[Tensor]]:
        """The objective of each restart, shape (restarts,), with its slopes in `point.parts()`."""
        restarts = len(point.inputs)
        self.evaluations[0] += restarts
        if restarts > 1 and self.batches_restarts:
            return self._together(point)
        found = [
            self._one(point.inputs[r], None if point.logits is None else point.logits[r])
            for r in range(restarts)
        ]
        slopes = [torch.stack(parts) for parts in zip(*(s for _, s in found), strict=True)]
        return torch.stack([value for value, _ in found]), slopes

    def given(self, searched: Tensor) -> Tensor:
        """The model's inputs for what is searched, shape (b, ...)."""
        return searched if self.decode is None else self.decode(searched)

    def quick(self, point: Point) -> AbstractContextManager[None]:
        """While open, convolutions are done by what is quickest for searches from this point."""
        if len(point.inputs) > 1 and self.batches_restarts:
            return nullcontext()  # many at a time: no longer tiny
        return quick_convolutions(self.sights[0][0].model, self.given(point.inputs[0]))

    def _one(self, inputs: Tensor, logits: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        searched = [t.detach().requires_grad_() for t in (inputs, logits) if t is not None]
        given = self.given(searched[0])
        labels = self._labels(searched[1] if logits is not None else None)
        outputs: list[Tensor] = []
        slopes: list[Tensor] = []
        factors: list[float] = []
        extras: list[Tensor] = []
        total = torch.zeros((), dtype=inputs.dtype, device=inputs.device)
        for place, (simulate, objective) in enumerate(self.sights):
            moments: list[Moments] = []
            if self.moments is not None and place == 0:
                with batch_moments(simulate.model) as moments:
                    gradients = simulate(given, labels)
            else:
                gradients = simulate(given, labels)
            flat, spare = self._workspace(place, gradients)
            value, slope, factor = objective.in_place(flat, spare)
            total = total + value / len(self.sights)
            factors.append(factor / len(self.sights))
            parts = torch.split(slope, [g.numel() for g in gradients])
            for g, part in zip(gradients, parts, strict=True):
                if g.requires_grad:
                    outputs.append(g)
                    # relative to the first sight's factor, which is applied at the end
                    share = factors[place] / factors[0]
                    slopes.append(part.view_as(g) if place == 0 else part.view_as(g) * share)
            if self.moments is not None and moments:
                extras.append(self.config.batch_norm * moments_penalty(moments, self.moments))
        penalty = self._penalty(searched[0], given)
        if penalty is not None:
            extras.append(penalty)
        for extra in extras:
            total = total + extra.detach()
        return total, _slopes([*outputs, *extras], slopes, searched, factors[0])

    def _workspace(self, place: int, gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradients side by side, and as much room again, in memory that is used every step."""
        parts = [g.detach().reshape(-1) for g in gradients]
        if place not in self.room:
            flat = torch.cat(parts)
            self.room[place] = flat, torch.empty_like(flat)
            return self.room[place]
        flat, spare = self.room[place]
        return torch.cat(parts, out=flat), spare

    def _penalty(self, searched: Tensor, given: Tensor) -> Tensor | None:
        parts = [input_penalty(self.config, given)]
        parts.append(None if self.prior is None else self.prior(searched))
        present = [part for part in parts if part is not None]
        return sum(present[1:], present[0]) if present else None

    def _labels(self, logits: Tensor | None) -> Tensor:
        if logits is not None:
            return logits.softmax(-1)
        assert self.labels is not None  # joint labels come with logits
        return self.labels

    def _together(self, point: Point) -> tuple[Tensor, list[Tensor]]:
        simulation, objective = self.sights[0]
        assert isinstance(simulation, OneGradient)

        def one(*searched: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            def gradient(*parts: Tensor) -> Tensor:
                given = self.given(parts[0])
                labels = self._labels(parts[1] if len(parts) > 1 else None)
                return simulation.pure(given, labels)

            pulled: Any = torch.func.vjp(gradient, *searched)
            flat, pull = pulled
            value, slope = objective.value_and_slope(flat)
            slopes = pull(slope)

            def penalty(x: Tensor) -> Tensor:
                found = self._penalty(x, self.given(x))
                return torch.zeros_like(value) if found is None else found

            more, extra = torch.func.grad_and_value(penalty)(searched[0])
            return value + extra, (slopes[0] + more, *slopes[1:])

        batched: Any = torch.vmap(one, randomness="same")
        values, slopes = batched(*point.parts())
        return values.detach(), [s.detach() for s in slopes]


def _slopes(
    outputs: list[Tensor], slopes: list[Tensor], searched: list[Tensor], factor: float
) -> list[Tensor]:
    """Derivatives of all outputs together; those without a slope of their own are scalars."""
    ones = [torch.full_like(extra, 1 / factor) for extra in outputs[len(slopes) :]]
    whole = [*slopes, *ones]
    found = torch.autograd.grad(outputs, searched, grad_outputs=whole, allow_unused=True)
    return [
        torch.zeros_like(x) if slope is None else slope * factor
        for x, slope in zip(searched, found, strict=True)
    ]

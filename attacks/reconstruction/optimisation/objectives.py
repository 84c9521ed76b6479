"""How far a gradient is from the observed one: functions of one flat vector.

Each objective gives its value with its derivative in the gradient, and, where it is a sum of
squares, the residual that Levenberg-Marquardt needs.

References:
    Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019 (euclidean).
    Geiping et al., "Inverting Gradients", NeurIPS 2020, eq. 4 (cosine). arXiv 2003.14053
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from attacks.reconstruction.optimisation.config import InversionConfig, LayerWeights
from fl_audit.errors import InputError

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """A distance to the observed gradient.

    Attributes:
        kind: "euclidean", "cosine" (masked or not) or "sign".
        target: What is matched, shape (d,), weights in it; of length 1 for the cosine.
        weights: Shape (d,), or None: all 1. 0 leaves a coordinate out.
        sizes: Entries of each parameter, in order; their sum is d.
    """

    kind: str
    target: Tensor
    weights: Tensor | None
    sizes: tuple[int, ...] = ()

    def __call__(self, gradient: Tensor) -> Tensor:
        """The distance, a scalar >= 0; 0 for the observed gradient itself, but for "sign", which is
        lowest where signs agree and magnitudes are alike."""
        found = gradient if self.weights is None else gradient * self.weights
        if self.kind == "euclidean":
            square: Tensor = (found - self.target).square().sum() / self.target.square().sum()
            return square
        if self.kind == "cosine":
            # as a distance of unit vectors: 1 - cos itself loses half of the digits near 0
            return 0.5 * (_unit(found) - self.target).square().sum()
        tiny = torch.finfo(found.dtype).tiny
        # layer by layer: their gradients differ by orders of magnitude
        layers = torch.split(found, list(self.sizes) or [len(found)])
        scale = torch.cat([p.abs().mean().clamp_min(tiny).expand(len(p)) for p in layers])
        wrong = torch.sigmoid(-4 * self.target.sign() * found / scale)
        counted = self.target != 0
        share: Tensor = (wrong * counted).sum() / counted.sum()
        return share

    def value_and_slope(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The distance with its derivative in the gradient, shape (d,).

        In closed form, and nothing is kept for a second derivative: a step of the search is lean.
        """
        found = gradient if self.weights is None else gradient * self.weights
        if self.kind == "euclidean":
            rest, square = found - self.target, self.target.square().sum()
            value, slope = rest.square().sum() / square, rest * (2 / square)
        elif self.kind == "cosine":
            size = found.norm().clamp_min(torch.finfo(found.dtype).tiny)
            unit = found / size
            rest = unit - self.target
            value = 0.5 * rest.dot(rest)  # = rest . unit: both are of length 1
            slope = (rest - value * unit) / size
        else:
            slope, value = torch.func.grad_and_value(self)(gradient)
            return value, slope
        return value, slope if self.weights is None else slope * self.weights

    def in_place(self, gradient: Tensor, spare: Tensor) -> tuple[Tensor, Tensor, float]:
        """As `value_and_slope`, in few passes over memory: a large model's are most of the work.

        Args:
            gradient: Shape (d,); it is overwritten.
            spare: Room for the slope, shape (d,).

        Returns:
            (value, slope / factor, factor).
        """
        if self.kind != "cosine":
            value, slope = self.value_and_slope(gradient)
            return value, slope, 1.0
        if self.weights is not None:
            gradient.mul_(self.weights)
        size = max(float(gradient.norm()), torch.finfo(gradient.dtype).tiny)
        back = torch.add(self.target, gradient, alpha=-1 / size, out=spare)
        value = 0.5 * back.dot(back)
        slope = back.add_(gradient, alpha=float(value) / size)
        if self.weights is not None:
            slope.mul_(self.weights)
        return value, slope, -1 / size

    def residual(self, gradient: Tensor) -> Tensor:
        """r with the distance = c * ||r||^2, shape (d,).

        Raises:
            InputError: If the objective is no sum of squares.
        """
        found = gradient if self.weights is None else gradient * self.weights
        if self.kind == "euclidean":
            rest: Tensor = (found - self.target) / self.target.norm()
            return rest
        if self.kind == "cosine":
            return _unit(found) - self.target
        raise InputError(
            "objective",
            self.kind,
            "it is no sum of squares, so Levenberg-Marquardt cannot refine it",
            "Use euclidean, cosine or masked_cosine, or refine = 0.",
        )


def build_objective(
    config: InversionConfig,
    observed: Mapping[str, Tensor],
    names: Sequence[str],
) -> Objective:
    """The objective that a config names.

    Args:
        observed: The observed gradient by parameter name.
        names: Parameters in the order in which gradients are laid side by side.

    Raises:
        InputError: If a layer to drop is unknown, or nothing is left to match.
    """
    for name in config.drop_layers:
        if name not in names:
            raise InputError(
                "drop_layers", name, "the model has no such parameter", f"It has: {list(names)}."
            )
    flat = torch.cat([observed[name].reshape(-1) for name in names])
    weights = _weights(config, observed, names).to(flat)
    if config.objective == "masked_cosine":
        weights = weights * (flat != 0)
    target = flat * weights
    if not bool(target.any()):
        raise InputError(
            "gradients",
            "all zeros",
            "nothing is left to match",
            "Choose an update that is not zero, and drop fewer layers.",
        )
    plain = bool((weights == 1).all())
    kind = "cosine" if config.objective == "masked_cosine" else config.objective
    target = _unit(target) if kind == "cosine" else target
    sizes = tuple(observed[name].numel() for name in names)
    return Objective(kind, target, None if plain else weights, sizes)


def _weights(
    config: InversionConfig, observed: Mapping[str, Tensor], names: Sequence[str]
) -> Tensor:
    values = _layer_weights(config.layer_weights, len(names))
    parts = [
        torch.full((observed[name].numel(),), 0.0 if name in config.drop_layers else value)
        for name, value in zip(names, values, strict=True)
    ]
    return torch.cat(parts)


def _layer_weights(kind: LayerWeights, num: int) -> list[float]:
    if kind == "equal":
        return [1.0] * num
    if kind == "linear":
        return [(place + 1) / num for place in range(num)]
    return [2.0**-(place) for place in range(num)]


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
    return unit

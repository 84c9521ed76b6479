"""Inputs before the first step of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attacks.reconstruction.optimisation.config import Bounds, Start
from fl_audit.errors import InputError

Tensor = torch.Tensor
_PATCH = 4  # pixels a side of the patch that "patterned" repeats


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Where inputs usually lie: from the attacker's own records, or else from their bounds.

    Attributes:
        centre, spread: Mean and standard deviation, broadcastable to one input.
        low, high: Bounds, likewise; None if not known.
    """

    centre: Tensor
    spread: Tensor
    low: Tensor | None
    high: Tensor | None

    def clamp_(self, inputs: Tensor) -> Tensor:
        """Into the bounds, in place."""
        return inputs if self.low is None else inputs.clamp_(self.low, self.high)


def find_scale(
    input_shape: Sequence[int],
    bounds: Bounds,
    proxies: Tensor | None,
    like: Tensor,
) -> Scale:
    """The scale of inputs of a shape.

    Raises:
        InputError: If bounds by channel do not fit the channels.
    """
    low, high = None, None
    if bounds == "auto":
        is_picture = proxies is not None and bool(((proxies >= 0) & (proxies <= 1)).all())
        bounds = (0.0, 1.0) if is_picture else None
    if bounds is not None:
        low, high = (_by_channel(side, input_shape).to(like) for side in bounds)
    if proxies is not None:
        centre = proxies.mean(0).to(like)
        spread = proxies.std(unbiased=False).to(like).clamp_min(1e-6)
    elif low is not None and high is not None:
        centre, spread = (low + high) / 2, (high - low) / 4
    else:
        centre, spread = torch.zeros(()).to(like), torch.ones(()).to(like)
    return Scale(centre, spread, low, high)


def start(kind: Start, shape: Sequence[int], scale: Scale, generator: torch.Generator) -> Tensor:
    """Inputs of shape (restarts, b, ...) to begin with.

    Raises:
        InputError: If a patterned start is asked for inputs that are no pictures.
    """
    like = scale.centre
    noise = torch.randn(tuple(shape), generator=generator, dtype=like.dtype).to(like.device)
    centre = like
    if kind in ("normal", "patterned") and like.ndim > 1:  # a level for each channel, no picture
        centre = like.mean(tuple(range(1, like.ndim)), keepdim=True)
    if kind == "zeros":
        return scale.clamp_(torch.zeros_like(noise))
    if kind == "mean":
        return scale.clamp_(centre + 0.01 * scale.spread * noise)
    if kind == "patterned":
        return scale.clamp_(centre + scale.spread * _repeated(noise))
    if kind == "uniform":
        part = torch.rand(tuple(shape), generator=generator, dtype=like.dtype).to(like.device)
        if scale.low is None or scale.high is None:
            return centre + scale.spread * (2 * part - 1)
        return scale.low + (scale.high - scale.low) * part
    return scale.clamp_(centre + scale.spread * noise)


def _repeated(noise: Tensor) -> Tensor:
    if noise.ndim < 5:
        raise InputError(
            "start", "patterned", "only pictures have a pattern to repeat", 'Use start = "normal".'
        )
    height, width = noise.shape[-2:]
    patch = noise[..., :_PATCH, :_PATCH]
    times = (-(-height // patch.shape[-2]), -(-width // patch.shape[-1]))
    return patch.tile(*times)[..., :height, :width].contiguous()


def _by_channel(side: float | list[float], input_shape: Sequence[int]) -> Tensor:
    values = torch.tensor(side, dtype=torch.float64)
    if values.ndim == 0:
        return values
    if len(values) != input_shape[0]:
        raise InputError(
            "bounds",
            side,
            f"inputs have {input_shape[0]} channels",
            "Give one number, or one a channel.",
        )
    return values.reshape(-1, *[1] * (len(input_shape) - 1))

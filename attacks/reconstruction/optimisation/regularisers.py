"""What natural inputs are like: penalties on inputs that need no gradient of the client's.

References:
    Geiping et al., "Inverting Gradients", NeurIPS 2020 (total variation). arXiv 2003.14053
    Yin et al., "See through Gradients", CVPR 2021 (BatchNorm statistics, groups). arXiv 2104.07586
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from attacks.reconstruction.optimisation.config import InversionConfig
from fl_audit.errors import InputError

Tensor = torch.Tensor
Moments = tuple[Tensor, Tensor]
"""Mean and (biased) variance of each channel."""

BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


def total_variation(inputs: Tensor) -> Tensor:
    """Mean absolute difference of pixels beside each other plus of those below each other.

    Args:
        inputs: Shape (b, channels, height, width).
    """
    across = (inputs[..., :, 1:] - inputs[..., :, :-1]).abs().mean()
    down = (inputs[..., 1:, :] - inputs[..., :-1, :]).abs().mean()
    return across + down


def input_penalty(config: InversionConfig, inputs: Tensor) -> Tensor | None:
    """Weighted penalties on inputs alone; None if the config has none."""
    parts = []
    if config.total_variation:
        parts.append(config.total_variation * total_variation(inputs))
    if config.norm:
        parts.append(config.norm * inputs.square().mean())
    return sum(parts[1:], parts[0]) if parts else None


@contextmanager
def batch_moments(model: torch.nn.Module) -> Iterator[list[Moments]]:
    """Collects, while open, mean and variance of what each BatchNorm layer is given, in order."""
    seen: list[Moments] = []

    def keep(_module: Any, given: tuple[Any, ...]) -> None:
        axes = [axis for axis in range(given[0].ndim) if axis != 1]
        seen.append((given[0].mean(axes), given[0].var(axes, unbiased=False)))

    hooks = [m.register_forward_pre_hook(keep) for m in model.modules() if _is_batch_norm(m)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def moments_penalty(found: Sequence[Moments], wanted: Sequence[Moments]) -> Tensor:
    """Mean over layers of the distances of means and variances, as shares of the wanted ones.

    Args:
        found: Of every layer in order, once for each local step.
        wanted: Of every layer.
    """
    parts = []
    for place, (mean, variance) in enumerate(found):
        wanted_mean, wanted_variance = wanted[place % len(wanted)]
        scale = wanted_variance.mean().clamp_min(1e-12)
        parts.append((mean - wanted_mean).square().mean() / scale)
        parts.append((variance - wanted_variance).square().mean() / scale.square())
    return torch.stack(parts).mean()


def running_moments(model: torch.nn.Module) -> list[Moments]:
    """The received model's own running statistics."""
    return [
        (_buffer(m.running_mean, name), _buffer(m.running_var, name))
        for name, m in _batch_norms(model)
    ]


def inferred_moments(
    model: torch.nn.Module, buffer_update: Mapping[str, Tensor], inputs: Tensor
) -> list[Moments]:
    """The client's batch statistics, from how one step moved its running ones.

    new = (1 - momentum) * old + momentum * batch, so batch = old + update / momentum. PyTorch
    keeps the unbiased variance; what a layer normalises by is the biased one, (n - 1) / n of it.

    Args:
        buffer_update: Running statistics after minus before, by name.
        inputs: Any batch of the step's shape: n is the number of examples times that of places
            in a layer's feature map, which the model itself tells.

    Raises:
        InputError: If the update has none, or a layer keeps a cumulative average.
    """
    moments = []
    sizes = _values_a_channel(model, inputs)
    for name, layer in _batch_norms(model):
        if layer.momentum is None:
            raise InputError(
                f"momentum of {name!r}",
                None,
                "a cumulative average does not tell the last batch's statistics",
                'Use statistics = "running" or "proxy".',
            )
        parts = []
        for kind in ("running_mean", "running_var"):
            key = f"{name}.{kind}".lstrip(".")
            if key not in buffer_update:
                raise InputError(
                    "buffers",
                    key,
                    "the client's update does not have it",
                    'Use statistics = "running" or "proxy": this federation keeps buffers local.',
                )
            old = _buffer(getattr(layer, kind), name)
            parts.append(old + buffer_update[key].to(old) / layer.momentum)
        biased = parts[1] * (1 - 1 / sizes[layer])
        moments.append((parts[0], biased.clamp_min(0)))
    return moments


def proxy_moments(model: torch.nn.Module, inputs: Tensor) -> list[Moments]:
    """Statistics of auxiliary inputs run through the received model."""
    with batch_moments(model) as seen, torch.no_grad():
        model(inputs)
    return list(seen)


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Whether the model normalises by statistics over a batch."""
    return any(_is_batch_norm(module) for module in model.modules())


def _values_a_channel(model: torch.nn.Module, inputs: Tensor) -> dict[torch.nn.Module, int]:
    """How many values each BatchNorm layer takes a channel's mean of."""
    sizes: dict[torch.nn.Module, int] = {}

    def keep(layer: torch.nn.Module, given: tuple[Any, ...]) -> None:
        sizes[layer] = given[0].numel() // given[0].shape[1]

    hooks = [m.register_forward_pre_hook(keep) for _, m in _batch_norms(model)]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def _is_batch_norm(module: torch.nn.Module) -> bool:
    return isinstance(module, BATCH_NORMS)


def _batch_norms(model: torch.nn.Module) -> list[tuple[str, Any]]:
    return [(name, m) for name, m in model.named_modules() if _is_batch_norm(m)]


def _buffer(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise InputError(
            f"running statistics of {name!r}",
            None,
            "the layer keeps none (track_running_stats = False)",
            'Use statistics = "proxy", or batch_norm = 0.',
        )
    return value.detach()

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
    """Mean over layers of the distances of means and variances, as shares of the wanted ones."""
    parts = []
    for (mean, variance), (wanted_mean, wanted_variance) in zip(found, wanted, strict=False):
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
    model: torch.nn.Module, buffer_update: Mapping[str, Tensor], batch_size: int
) -> list[Moments]:
    """The client's batch statistics, from how one step moved its running ones.

    new = (1 - momentum) * old + momentum * batch, so batch = old + update / momentum. PyTorch
    keeps the unbiased variance; what a layer normalises by is the biased one, (n - 1) / n of it.

    Args:
        buffer_update: Running statistics after minus before, by name.
        batch_size: Examples in the step; places of a picture count as examples, too, which the
            factor (n - 1) / n leaves out of account: it is 1 there in all but name.

    Raises:
        InputError: If the update has none, or a layer keeps a cumulative average.
    """
    moments = []
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
        biased = parts[1] if isinstance(layer, torch.nn.BatchNorm2d) else _biased(parts, batch_size)
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


def _biased(parts: Sequence[Tensor], batch_size: int) -> Tensor:
    return parts[1] * (batch_size - 1) / max(1, batch_size)


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

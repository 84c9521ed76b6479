"""How many directions of the inputs move the gradient: the rank of its derivative.

Taken at a fixed irregular point, since almost every point has the same rank (with ReLU: the same
within a region). Small problems form the whole derivative; larger ones some of its columns, which
bound the rank from both sides.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from attacks.reconstruction.optimisation.regularisers import BATCH_NORMS
from attacks.reconstruction.optimisation.simulation import OneGradient

Tensor = torch.Tensor
_WORK = 1_500_000_000  # multiplications of a singular value decomposition: about a second
_ELEMENTS = 6_000_000  # of the derivative that is formed, 48 MB
_FEWEST = 8  # columns below which bounds say nothing
_CHUNK = 32  # columns at a time
_GOLDEN = (1 + 5**0.5) / 2


@dataclass(frozen=True, slots=True)
class Rank:
    """Bounds on a rank, low <= rank <= high; equal where it is known."""

    low: int
    high: int

    @property
    def is_exact(self) -> bool:
        """Whether the bounds meet."""
        return self.low == self.high


def probe_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64 to try inputs on: BatchNorm in training mode leaves its running statistics
    alone, and dropout is off, which would draw from global generators."""
    module = copy.deepcopy(model).double()
    for layer in module.modules():
        if isinstance(layer, BATCH_NORMS) and layer.training:
            layer.track_running_stats = False
        if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
            layer.eval()
    return module


def irregular(num: int) -> Tensor:
    """`num` fixed values in [0, 1), float64, without a pattern: the parts of k^2 times the golden
    ratio after the point."""
    places = np.arange(1, num + 1, dtype=np.float64)
    return torch.from_numpy((places**2 * _GOLDEN) % 1.0)


def input_rank(
    module: torch.nn.Module, names: tuple[str, ...], shape: tuple[int, ...]
) -> tuple[Rank | None, str]:
    """Rank of the derivative of the gradient in the inputs, or None and why not.

    Args:
        module: A `probe_copy`.
        names: Parameters whose gradient counts, in the model's order.
        shape: Of the batch, (b, ...).
    """
    unknowns = int(np.prod(shape))
    size = dict(module.named_parameters())
    equations = sum(size[name].numel() for name in names)
    columns = int(min(unknowns, _ELEMENTS // equations, (_WORK / equations) ** 0.5))
    if columns < min(unknowns, _FEWEST):
        return None, f"{equations} equations are too many to do so quickly"
    chosen = torch.from_numpy(np.linspace(0, unknowns - 1, columns).round().astype(np.int64))
    try:
        derivative = _columns(module, names, shape, chosen)
    except (RuntimeError, NotImplementedError) as error:  # a layer without forward mode
        text = str(error).strip().splitlines()
        return None, f"the model does not allow it ({text[0] if text else type(error).__name__})"
    values = torch.linalg.svdvals(derivative)
    floor = float(values[0]) * max(derivative.shape) * torch.finfo(torch.float64).eps
    found = int((values > floor).sum())
    return Rank(found, unknowns - (columns - found)), ""


def _columns(
    module: torch.nn.Module, names: tuple[str, ...], shape: tuple[int, ...], chosen: Tensor
) -> Tensor:
    """Derivatives of the gradient in some inputs' values, shape (columns, equations)."""
    point = irregular(int(np.prod(shape))).reshape(shape).to(next(module.parameters()).device)
    with torch.no_grad():
        classes = module(point).shape[1]
    labels = torch.arange(shape[0], device=point.device) % classes
    simulation = OneGradient(module, names)

    def along(direction: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(
            lambda x: simulation.pure(x, labels), (point,), (direction,)
        )[1]
        return found

    parts = []
    for rows in torch.split(chosen.to(point.device), _CHUNK):
        directions = torch.zeros(len(rows), point.numel(), dtype=point.dtype, device=point.device)
        directions[torch.arange(len(rows)), rows] = 1
        parts.append(torch.vmap(along)(directions.view(-1, *shape)).detach())
    return torch.cat(parts)

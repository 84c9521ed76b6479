"""Gradient ascent by a malicious server: make a model bad at target records before it goes out.

A client that holds a target pulls its loss down again; a client that does not, leaves it where it
is. In a small model an ascent on many targets makes it bad at everything: then every client pulls
every loss down, and nothing tells members apart. So other records, which are to stay well known,
hold the model (`held`): it learns to be wrong about the targets and about nothing else, and what a
client changes is changed for the targets that it holds. A target that is bad enough (`max_loss`)
no longer pushes, and the model stays in a ball around where it started (`max_change`): it neither
explodes nor becomes useless.

References:
    Nasr, Shokri, Houmansadr, "Comprehensive privacy analysis of deep learning", IEEE S&P 2019,
    section III-C. https://arxiv.org/abs/1812.00910
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.federated.gradients import check_labels
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from fl_audit.records import Records
from fl_audit.trace.query import load_weights

Model = dict[str, NDArray[np.generic]]
Stepping = Literal["adam", "plain"]


def bounded_ascent(
    module: torch.nn.Module,
    arrays: Arrays,
    targets: Records,
    *,
    rate: float,
    steps: int,
    max_change: float,
    max_loss: float,
    held: Records | None = None,
    stepping: Stepping = "adam",
    batch: int = 1024,
    device: str = "cpu",
) -> Model:
    """Climb the targets' mean cross-entropy, and descend that of the records to hold.

    Args:
        module: The architecture; evaluated in eval mode, so buffers stay as they are.
        arrays: Where to start; not modified.
        targets: n records whose loss is to rise, each by its label.
        rate: Length of a step: of w += rate * gradient ("plain"; the gradient is that of the mean
            loss of the targets minus that of the held records, in nats), or of Adam on it.
        steps: How many; without held records, fewer if every target has reached `max_loss`.
        max_change: Largest distance from where it started, as a share of the L2 norm of the
            parameters there. The change is cut to it after every step.
        max_loss: Nats; a target at or above it no longer pushes.
        held: Records whose loss is to stay small; none by default.
        stepping: "adam", or "plain" gradient steps.
        batch: Targets held in memory at once.

    Returns:
        All arrays of the model, new, of the same dtypes.

    Raises:
        InputError: If a setting is impossible, or the targets do not fit the model.
    """
    _refuse_other_than_positive(rate=rate, steps=steps, max_change=max_change, max_loss=max_loss)
    load_weights(module, arrays)
    module.to(device).eval()
    parameters = [p for p in module.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    radius = max_change * _norm(start)
    kind = torch.optim.Adam if stepping == "adam" else torch.optim.SGD
    optimizer: torch.optim.Optimizer = kind(parameters, lr=rate)
    for _ in range(steps if len(targets) else 0):
        up = _gradients(module, parameters, targets, max_loss, batch, device)
        down = None
        if held is not None and len(held):
            down = _gradients(module, parameters, held, np.inf, batch, device)
        if up is None and down is None:
            break
        for place, parameter in enumerate(parameters):
            zero = torch.zeros_like(parameter)
            parameter.grad = (down[place] if down else zero) - (up[place] if up else zero)
        optimizer.step()
        _keep_in_ball(parameters, start, radius, rate)
    found = {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}
    return {name: np.array(found[name], dtype=np.asarray(arrays[name]).dtype) for name in arrays}


def loss_drop(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far a client pulled each record's loss down, nats; higher = more likely its own.

    Args:
        before: Loss at the model that the client received, shape (n,).
        after: Loss at the model that it sent back, shape (n,).
    """
    return before - after


def chunk(num_targets: int, size: int | None, turn: int) -> NDArray[np.int64]:
    """Rows of the targets whose turn it is: `size` at a time, round and round.

    Args:
        num_targets: n.
        size: How many at a time; None or more than n: all of them.
        turn: How many turns there were before.
    """
    if size is None or size >= num_targets:
        return np.arange(num_targets)
    turns = -(-num_targets // size)
    return np.arange(turn % turns, num_targets, turns)


def add_update(base: Arrays, before: Arrays, after: Arrays) -> Model:
    """base + (after - before): a client's update, moved to another starting point.

    Arrays that are not floating point are `after`'s.
    """
    moved: Model = {}
    for name, end in after.items():
        moved[name] = np.array(end)
        if np.issubdtype(end.dtype, np.floating):
            step = end.astype(np.float64) - before[name].astype(np.float64)
            moved[name] = (base[name].astype(np.float64) + step).astype(end.dtype)
    return moved


def same_shapes(one: Arrays, other: Arrays) -> bool:
    """Whether two models have the same names and shapes."""
    return _shapes(one) == _shapes(other)


def _shapes(arrays: Arrays) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _keep_in_ball(
    parameters: Sequence[torch.nn.Parameter],
    start: Sequence[torch.Tensor],
    radius: float,
    rate: float,
) -> None:
    """Cut the change to a length of `radius`."""
    with torch.no_grad():
        change = [p - q for p, q in zip(parameters, start, strict=True)]
        length = _norm(change)
        if not np.isfinite(length):
            raise InputError(
                "rate",
                rate,
                "the model is not finite after a step",
                "Start from a finite model, or lower the rate.",
            )
        if length > radius:
            for parameter, origin, moved in zip(parameters, start, change, strict=True):
                parameter.copy_(origin + moved * (radius / length))


def _gradients(
    module: torch.nn.Module,
    parameters: Sequence[torch.nn.Parameter],
    records: Records,
    max_loss: float,
    batch: int,
    device: str,
) -> list[torch.Tensor] | None:
    """Gradient of the mean loss, of records below `max_loss` only; None if there is none left."""
    sums = [torch.zeros_like(p) for p in parameters]
    is_pushing = False
    for first in range(0, len(records), batch):
        rows = slice(first, first + batch)
        inputs = torch.from_numpy(np.asarray(records.inputs[rows])).to(device)
        labels = torch.from_numpy(records.labels[rows]).to(device)
        try:
            outputs = module(inputs)
        except (RuntimeError, IndexError) as error:
            raise InputError(
                "targets",
                records.inputs.shape,
                f"the model refuses inputs of this shape ({error})",
                "Give records of the shape that the model was trained on.",
            ) from error
        check_labels(records, outputs.shape[1])
        losses = torch.nn.functional.cross_entropy(outputs, labels, reduction="none")
        pushing = losses[losses.detach() < max_loss]
        if pushing.numel():
            is_pushing = True
            total = pushing.sum() / len(records)
            for place, gradient in enumerate(torch.autograd.grad(total, list(parameters))):
                sums[place] += gradient
    return sums if is_pushing else None


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return float(np.sqrt(sum(float(t.double().square().sum()) for t in tensors)))


def _refuse_other_than_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0 or not np.isfinite(value):
            raise InputError(name, value, "must be above 0 and finite", "Give a positive number.")

"""Looking into a model: gradients of each record's loss, and outputs of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from attacks.shadows.target import Target
from fl_audit.errors import InputError
from fl_audit.records import Records

_ELEMENTS = 32_000_000  # float32 numbers of per-record gradients held at once: 128 MB
_MOST_ROWS = 256  # records at once: their activations take memory, too

Gradients = dict[str, torch.Tensor]


def record_gradients(
    module: nn.Module, records: Records, names: Sequence[str]
) -> Iterator[tuple[slice, Gradients]]:
    """Gradients of each record's loss, a block of records at a time.

    The loss is the cross-entropy in nats, or for regression the squared error.

    Args:
        module: In eval mode.
        names: Parameters, as in `module.named_parameters()`; at least one.

    Yields:
        (rows, gradients by parameter name, each of shape (rows, *parameter shape)).

    Raises:
        InputError: If the model refuses the records.
    """
    every = dict(module.named_parameters(remove_duplicate=False))  # a tied weight has two names
    weights = {name: every[name].detach() for name in names}
    size = sum(p.numel() for p in weights.values())
    most = max(1, min(_MOST_ROWS, _ELEMENTS // size))
    function = _gradient_function(module, is_regression=records.targets is not None)
    wanted = records.labels if records.targets is None else records.targets
    for start in range(0, len(records), most):
        rows = slice(start, min(start + most, len(records)))
        inputs = torch.from_numpy(np.array(records.inputs[rows])).to(_device(module))
        answers = torch.from_numpy(np.array(wanted[rows])).to(_device(module))
        try:
            with torch.no_grad():  # other parameters may want gradients: nothing is kept for them
                gradients = function(weights, inputs, answers)
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                "records",
                records.input_shape,
                f"the model gives no gradient of its loss on each of them ({error})",
                "Give records of the shape that the model was trained on; if they are, use "
                "gradients = [], which needs none.",
            ) from error
        yield rows, gradients


def record_activations(
    module: nn.Module, records: Records, paths: Sequence[str]
) -> Iterator[dict[str, torch.Tensor]]:
    """Outputs of modules, a block of records at a time: path -> (rows, d).

    Of a module that is called more than once, the last output counts.

    Raises:
        InputError: If a module is not called, or does not give one tensor with a row a record.
    """
    parts = dict(module.named_modules())
    for start in range(0, len(records), _MOST_ROWS):
        inputs = np.array(records.inputs[start : start + _MOST_ROWS])
        found: dict[str, Any] = {}
        hooks = [parts[path].register_forward_hook(_keeper(found, path)) for path in paths]
        try:
            with torch.no_grad():
                module(torch.from_numpy(inputs).to(_device(module)))
        finally:
            for hook in hooks:
                hook.remove()
        for path in paths:
            _check_output(path, found.get(path), len(inputs))
        yield {path: found[path].flatten(1) for path in paths}


def joined(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """A layer's parameters as one matrix (rows, out, k), or (rows, d) where outputs do not match.

    A linear layer's is (out, in + 1), with the bias as last column; a convolution's is
    (out, in * height * width + 1).
    """
    outputs = {g.shape[1] if g.dim() > 1 else 0 for g in gradients}
    if len(outputs) > 1 or outputs == {0}:
        return torch.cat([g.reshape(len(g), -1) for g in gradients], 1)
    return torch.cat([g.reshape(len(g), g.shape[1], -1) for g in gradients], 2)


def own_parameters(module: nn.Module, path: str) -> list[str]:
    """Names of a layer's own parameters, as in `module.named_parameters()`."""
    part = module.get_submodule(path)
    return [f"{path}.{n}" if path else n for n, _ in part.named_parameters(recurse=False)]


def require_module(target: Target) -> nn.Module:
    """The weights of a target.

    Raises:
        InputError: If it can only be asked.
    """
    if target.module is None:
        raise InputError(
            "model",
            "a function",
            "gradients and activations need the model's weights",
            "Pass the torch module itself, or use gradients = [] and activations = [].",
        )
    return target.module


class Projection:
    """A fixed random projection of `size` numbers to `width`, of memory `size`.

    Each number is added, with a random sign, to one of `width` equally large sums, drawn by lot:
    norms and inner products are kept in expectation.

    References:
        Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", ICALP 2002.
        https://doi.org/10.1007/3-540-45465-9_59
    """

    def __init__(self, size: int, width: int, rng: np.random.Generator) -> None:
        self._width, self._padding = width, -size % width
        self._signs = torch.from_numpy(rng.choice(np.array([-1, 1], dtype=np.float32), size))
        self._order = torch.from_numpy(rng.permutation(size + self._padding))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """(..., size) -> (..., width)."""
        signed = values * self._signs.to(values.device)
        padded = nn.functional.pad(signed, (0, self._padding))
        mixed = padded[..., self._order.to(values.device)]
        return mixed.reshape(*values.shape[:-1], self._width, -1).sum(-1)


def _gradient_function(
    module: nn.Module, *, is_regression: bool
) -> Callable[[Gradients, torch.Tensor, torch.Tensor], Gradients]:
    def loss(weights: Gradients, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = functional_call(module, weights, (x.unsqueeze(0),)).reshape(1, -1)
        if is_regression:
            return (answer - y).square().sum()
        return nn.functional.cross_entropy(answer, y.unsqueeze(0))

    one: Any = grad(loss)
    # torch.func cannot batch recurrent layers: their records go one by one
    if not any(isinstance(part, nn.RNNBase) for part in module.modules()):
        together: Callable[..., Gradients] = vmap(one, in_dims=(None, 0, 0))
        return together

    def one_by_one(weights: Gradients, inputs: torch.Tensor, wanted: torch.Tensor) -> Gradients:
        found = [one(weights, x, y) for x, y in zip(inputs, wanted, strict=True)]
        return {name: torch.stack([g[name] for g in found]) for name in weights}

    return one_by_one


def _keeper(found: dict[str, Any], path: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        # a copy: an in-place ReLU after it would change it
        found[path] = output.detach().clone() if isinstance(output, torch.Tensor) else output

    return keep


def _check_output(path: str, output: Any, num: int) -> None:
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if not isinstance(output, torch.Tensor) or output.shape[:1] != (num,):
        raise InputError(
            f"output of layer {path!r}",
            shape,
            f"must be one tensor with a row for each of {num} records",
            "Choose a layer that the model calls, and that gives one tensor, records first.",
        )


def _device(module: nn.Module) -> torch.device:
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device

"""Whether a model is smooth: L-BFGS and Levenberg-Marquardt gain most where it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_KINKS = (
    "relu",  # leaky, rrelu and prelu among them; gelu, silu and elu below
    "threshold",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "max_pool",
    "clamp",
    "abs",
    "sign",
    "amax",
    "amin",
    "maximum",
    "minimum",
    "shrink",
    "round",
    "floor",
    "ceil",
)
_EXACT = ("max", "min")  # and not softmax


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the names of the operations that a model does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Note the operation, and do it."""
        self.names.add(str(func).removeprefix("aten.").partition(".")[0])
        return func(*args, **(kwargs or {}))


def kinks(model: torch.nn.Module, inputs: torch.Tensor) -> list[str]:
    """Operations of the model that have kinks or steps, by name; none if it is smooth."""
    with _Watch() as watch, torch.no_grad():
        model(inputs)
    return sorted(
        name for name in watch.names if name in _EXACT or any(kink in name for kink in _KINKS)
    )

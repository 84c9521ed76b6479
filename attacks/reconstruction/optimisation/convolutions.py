"""Which library convolves: setting one up costs more than a tiny convolution itself.

PyTorch hands convolutions in float32 on a CPU to oneDNN. For nets as small as the LeNet of
gradient-inversion papers, plain matrix products take two thirds of the time; for larger ones they
take longer. The choice depends on sizes alone, so that results stay the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_TINY = 500_000  # multiplications of a model's largest convolution: below, plain products


@contextmanager
def quick_convolutions(model: torch.nn.Module, inputs: torch.Tensor) -> Iterator[None]:
    """While open, convolutions of the model are done by the library that suits their size.

    Args:
        inputs: A batch as the search will use it.
    """
    if not 0 < _largest(model, inputs) < _TINY:
        yield
        return
    backend: Any = torch.backends.mkldnn  # its flags are properties that types do not know
    before = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = before


def _largest(model: torch.nn.Module, inputs: torch.Tensor) -> int:
    """Multiplications of the largest convolution, for this batch; 0 if there is none."""
    sizes = [0]

    def keep(layer: Any, _given: Any, answer: torch.Tensor) -> None:
        sizes.append(answer.numel() * layer.weight[0].numel())

    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)

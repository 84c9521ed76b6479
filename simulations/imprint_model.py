"""An architecture that leaves room for an imprint: a dense block in front of another model.

References:
    Fowl et al., "Robbing the Fed", ICLR 2022. https://arxiv.org/abs/2110.13057
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, get_args

import torch
from torch import nn

from attacks.reconstruction.imprint_bins import SPARSE_TOP
from fl_audit.errors import UnknownNameError

Activation = Literal["relu", "clamp"]


class ImprintFirst(nn.Module):
    """`inner(x + block(x))`: the block is dense, as wide as it has rows, and gives 0 at first.

    Args:
        inner: The model behind the block.
        input_shape: Of one input.
        rows: Neurons of the block.
        activation: "relu", or "clamp" for sparse bins.

    Raises:
        UnknownNameError: If the activation is another one.
    """

    def __init__(
        self, inner: nn.Module, *, input_shape: Sequence[int], rows: int, activation: Activation
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise UnknownNameError("activation", activation, get_args(Activation))
        size = prod(input_shape)
        self.rows = nn.Linear(size, rows)
        self.back = nn.Linear(rows, size)
        self.activation = nn.ReLU() if activation == "relu" else nn.Hardtanh(0.0, SPARSE_TOP)
        self.inner = inner
        nn.init.zeros_(self.back.weight)
        nn.init.zeros_(self.back.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.activation(self.rows(inputs.flatten(1)))
        whole: torch.Tensor = self.inner(inputs + self.back(hidden).reshape(inputs.shape))
        return whole

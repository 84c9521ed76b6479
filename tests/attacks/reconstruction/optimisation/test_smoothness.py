"""Kinks are found in what a model does, not in how it is written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.reconstruction.optimisation.smoothness import kinks
from simulations.models import convnet, lenet_zhu, mlp
from tests.attacks.reconstruction.optimisation import nets


class Calls(nn.Module):
    """A model that calls a function and has no layer for it."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.clamp(min=0)


class Largest(nn.Module):
    """The largest over places."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(2).max(2).values


SMOOTH = [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.Softmax(1)]
BENT = [nn.ReLU(), nn.LeakyReLU(), nn.ReLU6(), nn.PReLU(), nn.Hardtanh(), nn.MaxPool2d(2)]


@pytest.mark.parametrize("layer", [*SMOOTH, nn.AvgPool2d(2), nn.GroupNorm(1, 4), nn.ELU()])
def test_smooth_layers_have_no_kinks(layer: nn.Module) -> None:
    assert kinks(layer, torch.rand(2, 4, 4, 4)) == []


@pytest.mark.parametrize("layer", [*BENT, nn.Hardswish(), nn.Softshrink(), Calls(), Largest()])
def test_bent_layers_have(layer: nn.Module) -> None:
    assert len(kinks(layer, torch.rand(2, 4, 4, 4))) == 1


def test_built_in_models() -> None:
    shape = (1, 8, 8)
    inputs = torch.rand(2, *shape)
    assert kinks(lenet_zhu(input_shape=shape, num_classes=3), inputs) == []
    assert kinks(nets.normalised().train(), torch.rand(2, 1, 4, 4).double()) == []
    assert kinks(mlp(input_shape=shape, num_classes=3), inputs) == ["relu"]
    bent = kinks(convnet(input_shape=shape, num_classes=3), inputs)
    assert "relu" in bent
    assert any("max_pool" in name for name in bent)

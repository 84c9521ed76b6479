"""Built-in architectures: sizes, and initialisation without touching the global generator."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fl_audit.errors import InputError
from fl_audit.factories import ModelSpec
from simulations.data import load_dataset
from simulations.models import lenet_zhu, model_spec, seeded
from simulations.scenario import Data, Model

MLP = ModelSpec(factory="simulations.models:mlp", settings={"input_shape": [4], "num_classes": 2})


def test_lenet_has_the_published_number_of_parameters() -> None:
    model = lenet_zhu(input_shape=[3, 32, 32], num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 15_826
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_reference_initialisation_fills_half_a_unit_each_way() -> None:
    model = lenet_zhu(input_shape=[3, 32, 32], num_classes=10, initialisation="reference")
    values = torch.cat([p.flatten() for p in model.parameters()])
    assert float(values.abs().max()) <= 0.5
    assert float(values.abs().max()) > 0.49


def test_lenet_needs_images() -> None:
    with pytest.raises(InputError, match="needs images"):
        lenet_zhu(input_shape=[30], num_classes=2)


def test_weights_depend_on_the_seed_only() -> None:
    state = torch.random.get_rng_state()
    first, second, other = (
        torch.cat([p.flatten() for p in seeded(MLP, seed=seed).parameters()]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_factory_that_returns_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="not a torch module"):
        seeded(ModelSpec(factory="builtins:dict"), seed=0)


def test_the_data_set_dictates_shape_and_classes() -> None:
    spec = model_spec(Model(name="mlp", hidden=[7]), load_dataset(Data(name="digits")))  # type: ignore[call-arg]
    assert spec.settings == {"input_shape": [1, 8, 8], "num_classes": 10, "hidden": [7]}


def spec_for(**settings: Any) -> ModelSpec:
    return model_spec(Model(**settings), load_dataset(Data(name="digits", limit=50)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mlp", "num_classes": 3}, r"model.num_classes = 3: the data set decides it: 10"),
        (
            {"name": "mlp", "input_shape": [3]},
            r"model.input_shape = \[3\]: the data set decides it",
        ),
        ({"name": "mlp", "hidden": [0]}, r"model.hidden = 0: must be at least 1"),
        ({"name": "convnet", "groups": 0}, r"model.groups = 0: must be at least 1"),
        ({"name": "convnet", "width": 0}, r"model.width = 0: must be at least 1"),
        ({"name": "convnet", "width": 12}, r"refuses these settings \(ValueError: num_channels"),
        (
            {"name": "lenet_zhu", "initialisation": "refrence"},
            r"unknown initialisation 'refrence'. Did you mean 'reference'",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec_for(**settings)


class Pair(nn.Module):
    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, inputs


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), r"gives \[1, 3\], not \[1, 10\]"),
        (lambda: nn.Linear(8, 10), r"gives \[1, 1, 8, 10\], not \[1, 10\]"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(65, 10)), r"records of shape \[1, 8, 8\]"),
        (Pair, "gives tuple"),
        (lambda: 1 // 0, "refuses these settings.*ZeroDivisionError"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(
    build: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = types.ModuleType("own_model")
    own.build = lambda input_shape, num_classes: build()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_model", own)
    with pytest.raises(InputError, match=message):
        spec_for(name="own_model:build")


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(64), nn.Dropout(0.5)])
def test_layers_that_differ_in_training_are_tried_out_without_a_trace(
    norm: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = types.ModuleType("own_model")
    own.build = lambda input_shape, num_classes: nn.Sequential(  # type: ignore[attr-defined]
        nn.Flatten(), norm, nn.Linear(64, num_classes)
    )
    monkeypatch.setitem(sys.modules, "own_model", own)
    state = torch.random.get_rng_state()
    assert spec_for(name="own_model:build").settings["num_classes"] == 10
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("convnet", 60_554), ("resnet8", 78_042), ("resnet20", 272_474), ("resnet18", 11_173_962)],
)
def test_image_models(name: str, parameters: int) -> None:
    """ResNet-20 has 0.27 M parameters (He et al., table 6); these add 1x1 shortcuts."""
    from simulations.models import MODELS

    model = MODELS[name](input_shape=[3, 32, 32], num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(InputError, match="needs images"):
        MODELS[name](input_shape=[30], num_classes=2)

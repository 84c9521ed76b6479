"""Built-in architectures: sizes, and initialisation without touching the global generator."""

from __future__ import annotations

import pytest
import torch

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

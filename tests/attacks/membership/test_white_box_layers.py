"""Layers by module path."""

from __future__ import annotations

import pytest
from torch import nn

from attacks.membership.white_box_layers import Selection, check_same_layers, select_layers
from fl_audit.errors import InputError, UnknownNameError


def make_cnn(width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.GroupNorm(2, width), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def test_the_default_is_the_last_layers_with_weights() -> None:
    assert select_layers(make_cnn()) == Selection(gradients=("4",))
    assert select_layers(make_cnn(), last=2) == Selection(gradients=("0", "4"))  # no GroupNorm
    assert select_layers(make_cnn(), last=9) == Selection(gradients=("0", "4"))
    assert select_layers(nn.Linear(3, 2)) == Selection(gradients=("",))


def test_layers_are_named_by_path() -> None:
    chosen = select_layers(make_cnn(), gradients=["1"], activations=["2"])
    assert chosen == Selection(("1",), ("2",))
    assert chosen
    assert not select_layers(make_cnn(), gradients=[])


def test_an_unknown_layer_comes_with_the_closest_and_all_others() -> None:
    module = nn.Sequential()
    for name in ("conv1", "fc2", "fc3"):
        module.add_module(name, nn.Linear(2, 2))
    with pytest.raises(UnknownNameError, match=r"'fc33'. Did you mean 'fc3'\? Known: conv1, fc2"):
        select_layers(module, gradients=["fc33"])
    with pytest.raises(UnknownNameError, match="unknown layer 'relu'"):
        select_layers(module, activations=["relu"])
    with pytest.raises(UnknownNameError, match=r"unknown layer with weights '2'. Known: 0, 1, 4"):
        select_layers(make_cnn(), gradients=["2"])


def test_a_layer_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="named twice"):
        select_layers(make_cnn(), gradients=["4", "4"])


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="no layer with weights"):
        select_layers(nn.Sequential(nn.ReLU()))


def test_equal_architectures_pass() -> None:
    check_same_layers(make_cnn(), make_cnn())


def test_the_first_layer_that_differs_is_named() -> None:
    with pytest.raises(InputError, match=r"layer '0'.*weight\[4, 1, 3, 3\].*weight\[6, 1, 3, 3\]"):
        check_same_layers(make_cnn(), make_cnn(6))
    a = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    b = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3))
    with pytest.raises(InputError, match=r"layer '1'.*ReLU.*Tanh"):
        check_same_layers(a, b)
    with pytest.raises(InputError, match=r"layer '2'.*no such layer"):
        check_same_layers(a, nn.Sequential(nn.Linear(2, 2), nn.ReLU()))

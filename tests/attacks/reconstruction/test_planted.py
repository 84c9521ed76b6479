"""Planting rows, and what the server then knows of the signals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from attacks.reconstruction.planted import (
    has_equal_signals,
    plant_rows,
    quiet_variance,
    signal_unit,
)
from fl_audit.errors import InputError
from simulations.models import convnet, mlp

SEED = 20_261_125
D, K = 36, 12


def _arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def _net(classes: int, hidden: tuple[int, ...] = (20,)) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp(input_shape=[D], num_classes=classes, hidden=hidden)


def _planted(classes: int, gain: float = 1.0) -> tuple[nn.Module, dict[str, np.ndarray]]:
    rng = np.random.default_rng(SEED)
    net, proxy = _net(classes), rng.random((100, D))
    rows, biases = rng.normal(size=(K, D)), np.zeros(K)
    sent = plant_rows(_arrays(net), rows, biases, proxy=proxy, gain=gain)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in sent.items()})
    return net, sent


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_every_class_gives_the_same_size_of_signal(classes: int) -> None:
    """The oracle is autograd: the first bias's gradient of one record, in every row that fires."""
    net, sent = _planted(classes)
    assert has_equal_signals(sent, np.linspace(0, 19, K).round().astype(int))
    inputs = torch.from_numpy(np.random.default_rng(SEED).random((classes, D)).astype(np.float32))
    sizes = []
    for label in range(classes):
        net.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs[label : label + 1]), torch.tensor([label]))
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = next(p for name, p in net.named_parameters() if name == "1.bias").grad
        assert gradient is not None
        fired = gradient[gradient != 0]
        assert 0 < len(fired) <= K
        assert float(fired.max() - fired.min()) < 1e-6
        sizes.append(abs(float(fired[0])))
    assert max(sizes) / min(sizes) < 1.03
    assert sizes[0] == pytest.approx(1.0, rel=0.03)


def test_planted_rows_hardly_move_the_answer_and_gain_scales_the_signal() -> None:
    net, sent = _planted(10, gain=5.0)
    inputs = torch.from_numpy(np.random.default_rng(SEED).random((50, D)).astype(np.float32))
    answers = net(inputs).detach()
    assert float((answers - answers[0]).abs().max()) < 0.03
    assert float(np.abs(sent["3.weight"]).max()) == 5.0


def test_an_honest_model_has_no_equal_signals() -> None:
    assert not has_equal_signals(_arrays(_net(10)), np.arange(K))
    deep = plant_rows(
        _arrays(_net(10, (20, 8))), np.ones((K, D)), np.zeros(K), proxy=np.ones((5, D))
    )
    assert not has_equal_signals(deep, np.arange(K))  # what comes behind decides


def test_the_unit_is_the_smallest_common_size() -> None:
    """Seven singles, two doubles, and one sum of opposites that all but cancels."""
    sums = np.full((10, D + 1), 0.5)
    sums[:, -1] = [1, 1, 1, -1, 1, 1.01, 1, 2, -2, 1e-3]
    sums[:, :-1] *= np.abs(sums[:, -1:]) * np.sign(sums[:, -1:])
    bounds = (np.zeros(D), np.ones(D))
    assert signal_unit(sums, np.full(10, 1e-12), bounds) == pytest.approx(1.0)
    assert signal_unit(0 * sums, np.full(10, 1e-12), bounds) is None


def test_noise_is_read_off_the_quiet_sums() -> None:
    """60 quiet sums of 400 squares: their median is within 3 % (deviation 1 %), and six of it."""
    rng = np.random.default_rng(SEED)
    energy = (rng.normal(0, 0.2, (60, 400)) ** 2).sum(axis=1)
    assert quiet_variance(np.append(energy, [900.0] * 40), 400) == pytest.approx(0.04, rel=0.06)


@pytest.mark.parametrize(
    ("module", "rows", "message"),
    [
        (_net(3), np.ones((30, D)), "Plant fewer rows"),
        (_net(3), np.ones((4, D + 1)), "has shape"),
        (convnet(input_shape=[3, 8, 8], num_classes=3), np.ones((4, 192)), "not a dense layer"),
        (nn.Sequential(nn.Linear(D, 3)), np.ones((2, D)), "not followed by a dense layer"),
    ],
)
def test_rows_that_find_no_place_are_refused(
    module: nn.Module, rows: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plant_rows(_arrays(module), rows, np.zeros(len(rows)), proxy=np.ones((5, rows.shape[1])))

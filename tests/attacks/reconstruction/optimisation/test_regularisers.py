"""Penalties by hand, and the statistics of a real BatchNorm step read back."""

from __future__ import annotations

import copy

import pytest
import torch

from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.regularisers import (
    BATCH_NORMS,
    batch_moments,
    has_batch_norm,
    inferred_moments,
    input_penalty,
    moments_penalty,
    proxy_moments,
    running_moments,
    total_variation,
)
from fl_audit.errors import InputError
from tests.attacks.reconstruction.optimisation import nets


def test_total_variation_by_hand() -> None:
    picture = torch.tensor([[[[0.0, 1.0, 1.0], [0.0, 0.0, 4.0]]]])
    across = (1 + 0 + 0 + 4) / 4
    down = (0 + 1 + 3) / 3
    assert float(total_variation(picture)) == pytest.approx(across + down)
    assert float(total_variation(torch.full((2, 3, 5, 5), 0.7))) == 0


def test_penalties_add_up_with_their_weights() -> None:
    inputs = nets.batch(2, 1, 4, 4)
    config = InversionConfig(total_variation=0.5, norm=0.25)
    found = input_penalty(config, inputs)
    assert found is not None
    expected = 0.5 * total_variation(inputs) + 0.25 * inputs.square().mean()
    assert float(found) == pytest.approx(float(expected))
    assert input_penalty(InversionConfig(), inputs) is None


def stepped(inputs: torch.Tensor) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The received model with statistics of its own, and how a real forward pass moved them."""
    model = nets.normalised().train()
    model(nets.batch(4, 1, 4, 4, seed=1) * 3)
    after = copy.deepcopy(model)
    after(inputs)
    before = dict(model.named_buffers())
    return model, {name: value - before[name] for name, value in after.named_buffers()}


def true_moments(model: torch.nn.Module, inputs: torch.Tensor) -> list[list[torch.Tensor]]:
    """What the two BatchNorm layers are given, by hand."""
    first = model[0](inputs)  # type: ignore[index]
    second = model[4](model[3](model[2](model[1](first))))  # type: ignore[index]
    axes = (0, 2, 3)
    return [
        [first.mean(axes), first.var(axes, unbiased=False)],
        [second.mean(0), second.var(0, unbiased=False)],
    ]


@pytest.mark.parametrize("size", [2, 5])
def test_batch_statistics_are_inferred_from_how_running_ones_moved(size: int) -> None:
    """Feature maps of 2 x 2: the biased variance is (n - 1) / n of the kept one, n = 4 size."""
    inputs = nets.batch(size, 1, 4, 4)
    model, moved = stepped(inputs)
    found = inferred_moments(quiet(model), moved, torch.zeros_like(inputs))
    for (mean, variance), expected in zip(found, true_moments(model, inputs), strict=True):
        torch.testing.assert_close(mean, expected[0].detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(variance, expected[1].detach(), rtol=1e-10, atol=1e-12)


def quiet(model: torch.nn.Module) -> torch.nn.Module:
    """As the engine makes it: batch statistics, and running ones left alone."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, BATCH_NORMS):
            layer.track_running_stats = False
    return model


def test_moments_of_inputs_are_collected_and_the_model_is_let_go() -> None:
    model, inputs = quiet(nets.normalised().train()), nets.batch(5, 1, 4, 4)
    with batch_moments(model) as seen:
        model(inputs)
    model(inputs)  # closed: nothing more is collected
    assert len(seen) == 2
    expected = true_moments(model, inputs)
    assert float(moments_penalty(seen, [(m, v) for m, v in expected]).detach()) < 1e-28
    proxies = proxy_moments(model, inputs)
    torch.testing.assert_close(proxies[1][1], expected[1][1].detach())


def test_the_penalty_by_hand_and_over_local_steps() -> None:
    wanted = [(torch.zeros(2), torch.full((2,), 2.0))]
    first = (torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]))
    same = (torch.zeros(2), torch.full((2,), 2.0))
    expected = ((1 + 9) / 2 / 2 + (0 + 4) / 2 / 4) / 2
    assert float(moments_penalty([first], wanted)) == pytest.approx(expected)
    assert float(moments_penalty([same, first], wanted)) == pytest.approx(expected / 2)


def test_running_moments_are_the_received_models() -> None:
    model, _ = stepped(nets.batch(4, 1, 4, 4))
    found = running_moments(model)
    buffers = dict(model.named_buffers())
    torch.testing.assert_close(found[0][0], buffers["1.running_mean"])
    torch.testing.assert_close(found[1][1], buffers["5.running_var"])


def test_missing_statistics_are_named() -> None:
    inputs = nets.batch(4, 1, 4, 4)
    model, moved = stepped(inputs)
    with pytest.raises(InputError, match=r"5\.running_var.*does not have it"):
        inferred_moments(model, {n: v for n, v in moved.items() if n != "5.running_var"}, inputs)
    cumulative = copy.deepcopy(model)
    cumulative[1].momentum = None  # type: ignore[index]
    with pytest.raises(InputError, match="cumulative average"):
        inferred_moments(cumulative, moved, inputs)
    without = torch.nn.Sequential(torch.nn.BatchNorm2d(1, track_running_stats=False))
    with pytest.raises(InputError, match="keeps none"):
        running_moments(without)
    assert has_batch_norm(without)
    assert not has_batch_norm(nets.dense())

"""The feasibility check: counts, invisible directions, rounding, and what it says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks.reconstruction.feasibility import Feasibility, check_feasibility
from attacks.reconstruction.resimulation import simulated_update
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining
from simulations.models import MODELS

SEED = 20_261_125


def _gradients(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    loss = nn.functional.cross_entropy(model(inputs), labels)
    found = torch.autograd.grad(loss, list(model.parameters()))
    return {n: g for (n, _), g in zip(model.named_parameters(), found, strict=True)}


def _check(
    model: nn.Module, shape: tuple[int, ...], size: int, *, classes: int = 3, **changes: Any
) -> Feasibility:
    """The check on a batch of random inputs, with one class after another as labels."""
    generator = torch.Generator().manual_seed(SEED)
    inputs = torch.rand(size, *shape, generator=generator)
    gradients = _gradients(model, inputs, torch.arange(size) % classes)
    settings = {"input_shape": shape, "batch_size": size, "labels_known": False, **changes}
    return check_feasibility(model, gradients, **settings)


def _seeded(*layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model


def _dense(model: nn.Sequential, place: int) -> nn.Linear:
    layer = model[place]
    assert isinstance(layer, nn.Linear)
    return layer


def test_too_few_equations_are_hopeless() -> None:
    model = _seeded(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 3))
    found = _check(model, (64,), 8)
    assert (found.verdict, found.unknowns, found.equations) == ("hopeless", 512, 275)
    assert "237 directions" in " ".join(found.reasons)
    assert found.has_duplicates is True
    assert _check(model, (64,), 2).verdict == "feasible"


@pytest.mark.parametrize(("shape", "exact"), [((3, 32, 32), False), ((1, 8, 8), True)])
def test_one_picture_and_a_smooth_net_are_feasible(
    shape: tuple[int, int, int], exact: bool
) -> None:
    torch_state = torch.random.get_rng_state()
    model = MODELS["lenet_zhu"](input_shape=shape, num_classes=10)
    torch.random.set_rng_state(torch_state)
    found = _check(model, shape, 1, classes=10)
    assert found.verdict == "feasible"
    assert not found.reasons
    assert found.rank is not None
    assert found.rank.is_exact is exact
    assert found.rank.high == found.unknowns == np.prod(shape)
    assert (found.labels, found.has_duplicates, found.batch_norm) == ("exposed", False, "none")


def test_what_pooling_throws_away_is_invisible() -> None:
    """Of each block of four pixels only the largest goes on: 12 of 16 move nothing."""
    model = _seeded(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3))
    found = _check(model, (1, 4, 4), 1)
    assert found.rank is not None
    assert (found.rank.low, found.rank.high) == (4, 4)
    assert found.verdict == "hopeless"
    assert "12 of 16 directions" in " ".join(found.reasons)


class _Blind(nn.Module):
    """Looks at all but the first three inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = _seeded(nn.Linear(9, 20), nn.Tanh(), nn.Linear(20, 3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.rest(inputs[:, 3:])
        return answer


def test_few_invisible_directions_leave_doubt() -> None:
    found = _check(_Blind(), (12,), 2)
    assert found.rank is not None
    assert (found.rank.low, found.rank.high) == (18, 18)
    assert found.verdict == "doubtful"


def test_a_large_net_gets_bounds_that_hold() -> None:
    """A net that ignores half of a large input, with only some columns of the derivative formed."""
    model = _seeded(nn.MaxPool1d(2), nn.Flatten(), nn.Linear(500, 40), nn.Tanh(), nn.Linear(40, 3))
    found = _check(model, (1, 1000), 1)
    assert found.rank is not None
    assert found.rank.low <= 500 <= found.rank.high < 1000
    assert "At least" in " ".join(found.reasons)


def test_a_zero_gradient_is_hopeless_and_a_dead_layer_doubtful() -> None:
    model = _seeded(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    found = check_feasibility(model, zero, input_shape=(8,), batch_size=1, labels_known=True)
    assert found.verdict == "hopeless"
    assert found.dead == tuple(zero)
    assert "says nothing" in found.reasons[0]
    with torch.no_grad():
        _dense(model, 0).bias.fill_(-50.0)  # no unit is ever on
    found = _check(model, (8,), 1)
    assert found.verdict == "hopeless"  # 3 equations are left for 8 unknowns
    assert found.dead == ("0.weight", "0.bias", "2.weight")


def test_labels_hide_without_a_last_layer_of_classes() -> None:
    model = _seeded(nn.Linear(8, 3), nn.Softsign())
    assert _check(model, (8,), 1).labels == "exposed"
    assert _check(model, (8,), 1, labels_known=True).labels == "known"
    joined = _seeded(nn.Linear(8, 6), nn.Tanh(), nn.AvgPool1d(2))
    found = _check(joined, (8,), 1)
    assert (found.labels, found.verdict) == ("hidden", "doubtful")


def test_an_unknown_batch_size_is_judged_for_the_fewest_records() -> None:
    model = _seeded(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in _dense(model, 2).parameters():
            parameter.mul_(0.1)  # nearly even answers: a class of the batch shows below 0
    found = _check(model, (8,), 2)
    assert (found.has_duplicates, found.verdict) == (False, "feasible")
    found = _check(model, (8,), 2, batch_size=None)
    assert (found.unknowns, found.verdict) == (16, "doubtful")
    assert "judged for 2" in found.reasons[0]


@pytest.mark.parametrize(
    ("training", "sent", "mode", "verdict"),
    [
        (True, False, "batch", "doubtful"),
        (True, True, "batch", "feasible"),
        (False, False, "running", "feasible"),
    ],
)
def test_batch_norm_modes_are_told_apart(
    training: bool, sent: bool, mode: str, verdict: str
) -> None:
    model = _seeded(nn.Linear(6, 30), nn.Tanh(), nn.BatchNorm1d(30), nn.Linear(30, 3))
    model.train(training)
    gradients = _gradients(model, torch.rand(4, 6), torch.arange(4) % 3)
    before = {name: b.clone() for name, b in model.named_buffers()}
    moved = {"2.running_mean": np.zeros(30)} if sent else {}
    found = check_feasibility(
        model, {**gradients, **moved}, input_shape=(6,), batch_size=4, labels_known=False
    )
    assert found.batch_norm == mode
    assert found.rank is not None  # batch statistics are differentiated through
    assert found.verdict == verdict
    assert ("not sent" in " ".join(found.reasons)) is (verdict == "doubtful")
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


def test_batch_statistics_hide_a_shift_of_all_inputs() -> None:
    """Known answer: a dense layer and BatchNorm in training mode see inputs less their mean, so as
    many directions are invisible as an input has values."""
    model = _seeded(nn.Linear(6, 30), nn.BatchNorm1d(30), nn.Tanh(), nn.Linear(30, 3))
    hidden = _check(model.train(), (6,), 4).rank
    seen = _check(model.eval(), (6,), 4).rank
    assert hidden is not None
    assert seen is not None
    assert (hidden.low, hidden.high, seen.low) == (18, 18, 24)


def test_dropout_is_named_and_draws_nothing() -> None:
    model = _seeded(nn.Linear(6, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 3)).train()
    gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    found = check_feasibility(model, gradients, input_shape=(6,), batch_size=1, labels_known=False)
    assert torch.equal(state, torch.random.get_rng_state())
    assert found.rank is not None
    assert (found.rank.low, found.verdict) == (6, "doubtful")
    assert "Dropout was on" in " ".join(found.reasons)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rounding_is_that_of_a_stored_update(dtype: torch.dtype) -> None:
    """Oracle: weights stored before and after a step; the difference less the true step."""
    model = _seeded(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype).double())
    inputs = torch.rand(2, 40, generator=torch.Generator().manual_seed(SEED)).double()
    gradients = _gradients(model, inputs, torch.tensor([0, 1]))
    local = LocalTraining(algorithm="fedsgd", learning_rate=0.01)
    received = {n: p.detach().to(dtype).numpy() for n, p in model.named_parameters()}
    found = check_feasibility(
        model,
        gradients,
        input_shape=(40,),
        batch_size=2,
        labels_known=False,
        local=local,
        received=received,
    )
    wrong, length = 0.0, 0.0
    for name, parameter in model.named_parameters():
        step = -0.01 * gradients[name]
        stored = (parameter.detach() + step).to(dtype).double() - parameter.detach()
        wrong += float((stored - step).square().sum())
        length += float(step.square().sum())
    assert found.rounding == pytest.approx((wrong / length) ** 0.5, rel=0.2)
    assert found.verdict == ("feasible" if dtype is torch.float32 else "doubtful")


def test_rounding_above_the_update_is_hopeless() -> None:
    model = _seeded(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 3))
    tiny = LocalTraining(algorithm="fedsgd", learning_rate=1e-8)
    found = _check(model, (8,), 1, local=tiny)
    assert found.verdict == "hopeless"
    assert "Rounding" in " ".join(found.reasons)
    assert _check(model, (8,), 1, local=tiny, rate=0.1).verdict == "feasible"


def test_local_steps_and_how_far_they_moved() -> None:
    """Oracle: three steps played, read as one gradient."""
    model = _seeded(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    local = LocalTraining(batch_size=2, local_epochs=3, momentum=0.5, learning_rate=0.1)
    inputs = torch.rand(2, 8, generator=torch.Generator().manual_seed(SEED)).double()
    update = simulated_update(
        model, inputs, torch.tensor([0, 1]), local, 0.1, rng=np.random.default_rng(SEED)
    )
    norm = torch.cat([p.detach().flatten() for p in model.parameters()]).norm()
    length = torch.cat([u.flatten() for u in update.values()]).norm()
    scale = 0.1 * (1 + 1.5 + 1.75)
    found = check_feasibility(
        model,
        {name: -value / scale for name, value in update.items()},
        input_shape=(8,),
        batch_size=2,
        labels_known=False,
        local=local,
    )
    assert found.steps == 3
    assert found.moved == pytest.approx(float(length / norm))
    assert "3 local steps" in " ".join(found.reasons)


def test_an_unknown_rate_is_not_guessed() -> None:
    model = _seeded(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 3))
    falling = LocalTraining(algorithm="fedsgd", schedule="exponential")
    found = _check(model, (8,), 1, local=falling)
    assert (found.steps, found.moved, found.rounding) == (1, None, None)
    assert "not known" in " ".join(found.reasons)


def test_a_layer_without_forward_mode_gives_no_rank_and_says_so() -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.clone()

        @staticmethod
        def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:
            return slope

    class Layer(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = Opaque.apply(inputs)  # type: ignore[no-untyped-call]
            return answer

    found = _check(_seeded(nn.Linear(8, 20), nn.Tanh(), Layer(), nn.Linear(20, 3)), (8,), 1)
    assert found.rank is None
    assert "the model does not allow it" in " ".join(found.reasons)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"input_shape": (9,)}, "refuses"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    model = _seeded(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 3))
    with pytest.raises(InputError, match=message):
        _check(model, (8,), 1, **changes)


def test_gradients_that_do_not_fit_are_named() -> None:
    model = _seeded(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 3))
    gradients: dict[str, Any] = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for wrong, message in ((None, "missing"), (torch.full((3,), torch.nan), "finite")):
        broken = {**gradients, "2.bias": wrong}
        if wrong is None:
            del broken["2.bias"]
        with pytest.raises(InputError, match=message):
            check_feasibility(model, broken, input_shape=(8,), batch_size=1, labels_known=False)

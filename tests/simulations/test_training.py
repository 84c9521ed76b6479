"""Local training: the batches that the scorer repeats, and one step by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks.devices import choose_device
from fl_audit.errors import InputError
from fl_audit.factories import ModelSpec
from fl_audit.local_training import LocalTraining, LocalTrainings
from fl_audit.records import Records
from simulations.models import mlp, seeded
from simulations.training import batches, evaluate, train

SEED = 20_261_123
SPEC = ModelSpec(
    factory="simulations.models:mlp",
    settings={"input_shape": [6], "num_classes": 3, "hidden": [5]},
)


def records(n: int) -> Records:
    rng = np.random.default_rng(SEED)
    return Records(np.arange(n), rng.random((n, 6)).astype(np.float32), rng.integers(3, size=n))


def test_an_epoch_uses_every_example_once() -> None:
    local = LocalTraining(local_epochs=3, batch_size=4)
    drawn = list(batches(10, local, rng=np.random.default_rng(SEED)))
    assert [len(b) for b in drawn] == [4, 4, 2] * 3
    for epoch in range(3):
        rows = np.concatenate(drawn[3 * epoch : 3 * epoch + 3])
        assert sorted(rows) == list(range(10))
    assert local.steps(10) == 9


def test_fedsgd_takes_one_step_by_the_formula() -> None:
    local = LocalTraining(algorithm="fedsgd", batch_size=4, learning_rate=0.5)
    data = records(10)
    torch.set_num_threads(1)
    model = mlp(input_shape=[6], num_classes=3, hidden=[5])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (rows,) = batches(10, local, rng=np.random.default_rng(SEED))
    loss = torch.nn.functional.cross_entropy(
        model(torch.from_numpy(data.inputs[rows])), torch.from_numpy(data.labels[rows])
    )
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    mean, count = train(model, data, local, server_round=1, rng=np.random.default_rng(SEED))
    assert mean == pytest.approx(float(loss))
    assert count == 4
    for (name, after), gradient in zip(model.state_dict().items(), gradients, strict=True):
        torch.testing.assert_close(after, before[name] - 0.5 * gradient)


def test_training_fits() -> None:
    model = mlp(input_shape=[6], num_classes=3, hidden=[64])
    local = LocalTraining(local_epochs=300, batch_size=10, learning_rate=0.5)
    train(model, records(10), local, server_round=1, rng=np.random.default_rng(SEED))
    assert evaluate(model, records(10))[1].all()


def test_clients_that_differ_keep_the_rest_of_the_default() -> None:
    trainings = LocalTrainings(clients={2: LocalTraining(batch_size=1)})
    assert trainings.of(2).batch_size == 1
    assert trainings.of(0) == trainings.default


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(InputError, match="no CUDA device"):
        choose_device("cuda")
    with pytest.raises(InputError, match="unknown device"):
        choose_device("tpu")


def by_hand(local: LocalTraining, server_round: int) -> dict[str, torch.Tensor]:
    """The same training written out, for momentum, weight decay and the proximal term."""
    model = seeded(SPEC, seed=0)
    data = records(10)
    start = [p.detach().clone() for p in model.parameters()]
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    rate = local.learning_rate_in(server_round)
    for rows in batches(10, local, rng=np.random.default_rng(SEED)):
        loss = torch.nn.functional.cross_entropy(
            model(torch.from_numpy(data.inputs[rows])), torch.from_numpy(data.labels[rows])
        )
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g, q, v in zip(model.parameters(), gradients, start, velocity, strict=True):
                full = g + local.proximal_mu * (p - q) + local.weight_decay * p
                v.mul_(local.momentum).add_(full)
                p.sub_(rate * v)
    return dict(model.state_dict())


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9},
        {"weight_decay": 0.01},
        {"proximal_mu": 0.5},
        {"schedule": "exponential", "decay": 0.5},
        {"momentum": 0.5, "weight_decay": 0.1, "proximal_mu": 1.0, "schedule": "cosine"},
    ],
    ids=str,
)
def test_every_setting_does_what_its_formula_says(settings: dict[str, float]) -> None:
    local = LocalTraining.model_validate({"batch_size": 4, "learning_rate": 0.2, **settings})
    model = seeded(SPEC, seed=0)
    train(model, records(10), local, server_round=3, rng=np.random.default_rng(SEED))
    for name, expected in by_hand(local, server_round=3).items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("exponential", [1.0, 0.5, 0.25, 0.125, 0.0625]),
        ("step", [1.0, 1.0, 0.5, 0.5, 0.25]),
        ("cosine", [1.0, 0.5, 0.0, 0.0, 0.0]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    local = LocalTraining.model_validate(
        {"learning_rate": 1.0, "schedule": schedule, "decay": 0.5, "decay_rounds": 2}
    )
    assert [local.learning_rate_in(r) for r in range(1, 6)] == pytest.approx(expected)

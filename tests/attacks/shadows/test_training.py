"""Models trained together are those trained one by one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from attacks.shadows.training import (
    Build,
    Job,
    TrainingConfig,
    epoch_batches,
    factory_builder,
    fresh_builder,
    image_format,
    settled,
    train_one,
    train_together,
    trains_together,
)
from fl_audit.errors import InputError
from fl_audit.records import Records


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))


def jobs(num: int, records: int = 50, *, targets: bool = False) -> list[Job]:
    rng = np.random.default_rng(0)
    found = []
    for seed in range(num):
        inputs = rng.normal(size=(records, 6)).astype(np.float32)
        labels = rng.integers(3, size=records)
        wanted = rng.normal(size=records).astype(np.float32) if targets else None
        found.append(Job(Records(np.arange(records), inputs, labels, wanted), seed))
    return found


class Applied(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.function(inputs)


class Counting(nn.Module):
    """Keeps state between batches without changing what it answers."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.count = self.count + 1
        return inputs


def bits(model: nn.Module) -> bytes:
    return b"".join(t.detach().numpy().tobytes() for t in model.state_dict().values())


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in model.state_dict().values()])


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_together_is_one_by_one_and_groups_do_not_matter(
    optimizer: Literal["sgd", "adam", "adamw"],
) -> None:
    config = TrainingConfig(
        optimizer=optimizer, epochs=3, batch_size=16, momentum=0.9, weight_decay=1e-3
    )
    build, work = fresh_builder(mlp()), jobs(4)
    together = train_together(build, work, config)
    for job, model in zip(work, together, strict=True):
        alone = train_one(build, job, config)
        assert torch.allclose(weights(alone), weights(model), atol=1e-5)
    for size in (1, 2):
        group = train_together(build, work[:size], config)
        assert [bits(m) for m in group] == [bits(m) for m in together[:size]]
    assert len({bits(m) for m in together}) == 4


def test_training_learns_and_leaves_the_global_generator_alone() -> None:
    job = jobs(1)[0]
    build = fresh_builder(mlp())
    before = torch.random.get_rng_state()
    model = train_one(build, job, TrainingConfig(epochs=800, learning_rate=1e-2))
    assert torch.equal(torch.random.get_rng_state(), before)
    right = model(torch.from_numpy(job.records.inputs)).argmax(1).numpy() == job.records.labels
    assert right.mean() > 0.95


def test_regression_and_soft_labels() -> None:
    job = jobs(1, targets=True)[0]
    one = factory_builder(lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1)))
    config = TrainingConfig(epochs=300, learning_rate=1e-2)  # mse, since there are targets
    answers = train_one(one, job, config)(torch.from_numpy(job.records.inputs)).detach().numpy()
    assert job.records.targets is not None
    assert np.square(answers[:, 0] - job.records.targets).mean() < 0.1
    soft = np.full((50, 3), 1 / 3, dtype=np.float32)
    work = Job(job.records, 0, soft)
    model = train_one(fresh_builder(mlp()), work, TrainingConfig(epochs=100, learning_rate=1e-2))
    p = model(torch.from_numpy(job.records.inputs)).softmax(1).detach().numpy()
    assert np.abs(p - 1 / 3).max() < 0.1


def test_mse_needs_targets() -> None:
    with pytest.raises(InputError, match=r"training.loss = 'mse': is for regression"):
        train_one(fresh_builder(mlp()), jobs(1)[0], TrainingConfig(loss="mse"))


@pytest.mark.parametrize(
    ("part", "together"),
    [
        (nn.Linear(3, 3), True),
        (nn.Conv2d(1, 1, 1), False),
        (nn.BatchNorm1d(3), False),
        (nn.Dropout(0.5), False),
        (nn.LayerNorm(3), True),
        (Applied(lambda x: nn.functional.dropout(x, 1e-9)), False),  # changes no output here
        (Applied(lambda x: x + float(np.random.default_rng().normal())), False),
        (Applied(lambda x: x * 2 if x.sum() > 0 else x), False),  # vmap cannot
        (Applied(lambda x: x.relu()), True),
        (Counting(), False),
    ],
)
def test_what_trains_together(part: nn.Module, together: bool) -> None:
    model = nn.Sequential(part, nn.Linear(3, 3))
    before = torch.random.get_rng_state()
    example = np.ones((2, 1, 3, 3) if isinstance(part, nn.Conv2d) else (2, 3), np.float32)
    assert trains_together(model, example) is together
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_that_a_batched_optimizer_would_treat_otherwise_train_one_by_one() -> None:
    example = np.ones((2, 3), np.float32)
    frozen, unused, mixed = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(3))
    assert trains_together(frozen, example)
    frozen[0].requires_grad_(False)
    unused.register_parameter("extra", nn.Parameter(torch.ones(1)))
    mixed[1].double()
    mixed.insert(1, Applied(lambda x: x.double()))
    for model in (frozen, unused, mixed):
        assert not trains_together(model, example)


class Viewing(nn.Module):
    """Needs pictures whose numbers lie channel by channel."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.view(len(inputs), -1)


def test_pictures_train_in_the_faster_order_of_memory_with_the_same_result() -> None:
    def cnn(flatten: nn.Module) -> nn.Module:
        first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
        return nn.Sequential(*first, nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), flatten, nn.Linear(16, 3))

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 2, 4, 4)).astype(np.float32)
    job = Job(Records(np.arange(40), inputs, rng.integers(3, size=40)), 0)
    free, bound = cnn(nn.Flatten()), cnn(Viewing())
    assert image_format(free, inputs[:2]) is torch.channels_last
    assert image_format(bound, inputs[:2]) is torch.contiguous_format
    assert image_format(mlp(), np.ones((2, 6), np.float32)) is torch.contiguous_format
    config = TrainingConfig(epochs=3, batch_size=16, weight_decay=1e-3)
    snapshots: list[nn.Module] = []
    models = [
        train_one(fresh_builder(m), job, config, on_epoch=snapshots.append) for m in (free, bound)
    ]
    assert torch.allclose(weights(models[0]), weights(models[1]), atol=1e-5)
    for model in (*models, *snapshots):  # as if read from disk
        assert all(p.is_contiguous() for p in model.parameters())
    assert len({bits(m) for m in snapshots[:3]}) == 3


def test_the_loss_follows_the_records() -> None:
    for loss, has_targets, remedy in [
        ("mse", False, "cross_entropy"),
        ("cross_entropy", True, "mse"),
    ]:
        with pytest.raises(InputError, match=rf"training.loss = '{loss}'.*Use loss = '{remedy}'"):
            settled(TrainingConfig.model_validate({"loss": loss}), has_targets=has_targets)
    assert settled(TrainingConfig(), has_targets=True).loss == "mse"
    assert settled(TrainingConfig(), has_targets=False).loss == "cross_entropy"


@pytest.mark.parametrize(
    ("num", "size", "sizes"),
    [(33, 16, [16, 17]), (34, 16, [16, 16, 2]), (1, 16, [1]), (3, 1, [1] * 3)],
)
def test_a_last_batch_of_one_joins_the_one_before(num: int, size: int, sizes: list[int]) -> None:
    for batches in epoch_batches(num, TrainingConfig(epochs=2, batch_size=size), 0):
        assert [len(rows) for rows in batches] == sizes
        assert sorted(np.concatenate(batches)) == list(range(num))


def test_batch_normalisation_trains_whatever_the_number_of_records() -> None:
    build = factory_builder(lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)))
    train_one(build, jobs(1, 33)[0], TrainingConfig(epochs=1, batch_size=16))


def test_fresh_modules_have_new_weights_by_seed() -> None:
    trained = mlp()
    build: Build = fresh_builder(trained)
    assert bits(build(1)) == bits(build(1)) != bits(build(2))
    old = {bits(nn.Sequential(p)) for p in trained}
    new = {bits(nn.Sequential(p)) for p in chain(build(1)) if list(p.parameters())}
    assert not old & new


def test_a_layer_that_cannot_be_reset_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

    with pytest.raises(InputError, match="reset_parameters") as caught:
        fresh_builder(nn.Sequential(nn.Linear(2, 3), Odd()))
    assert "layer '1'" in str(caught.value)


def test_a_factory_must_return_a_module() -> None:
    with pytest.raises(InputError, match="model factory = 'dict'"):
        factory_builder(dict)(0)

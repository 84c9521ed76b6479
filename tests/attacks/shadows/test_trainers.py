"""Trainers call back with every model; users' functions fail with their own words."""

from __future__ import annotations

from typing import Any

import cloudpickle  # what joblib sends functions with
import joblib
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from attacks.shadows import trainers
from attacks.shadows.trainers import DefaultTrainer, FunctionTrainer, RecordsDataset
from attacks.shadows.training import Job, TrainingConfig, factory_builder, fresh_builder
from fl_audit.errors import InputError
from fl_audit.records import Records


def job(seed: int = 0, num: int = 30) -> Job:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num, 4)).astype(np.float32)
    return Job(Records(np.arange(num), inputs, rng.integers(2, size=num)), seed)


def collect(trainer: Any, work: list[Job]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    trainer.train(work, found.__setitem__)
    return found


def bits(model: nn.Module) -> bytes:
    return b"".join(t.detach().numpy().tobytes() for t in model.state_dict().values())


def fit(model: nn.Module, dataset: RecordsDataset, *, seed: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, labels in DataLoader(dataset, batch_size=10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def test_jobs_of_unequal_size_train_in_groups() -> None:
    trainer = DefaultTrainer(fresh_builder(nn.Linear(4, 2)), TrainingConfig(epochs=1))
    found = collect(trainer, [job(0, 30), job(1, 31), job(2, 30)])
    assert sorted(found) == [0, 1, 2]


class Noisy(nn.Module):
    """Dropout that no layer tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(nn.functional.dropout(inputs, 0.5, self.training))
        return found


def test_functional_dropout_does_not_make_bits_depend_on_the_group() -> None:
    trainer = DefaultTrainer(factory_builder(Noisy), TrainingConfig(epochs=2), workers=1)
    work = [job(seed) for seed in range(3)]
    together, alone = collect(trainer, work), collect(trainer, work[1:2])
    assert bits(together[1]) == bits(alone[0])


def test_the_default_trainers_key_follows_the_code_and_how_weights_are_drawn() -> None:
    class Edited(Noisy):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) * 2

    class Drawn(Noisy):
        def __init__(self) -> None:
            super().__init__()
            nn.init.normal_(self.inner.weight)

    class Unknown(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.rng = np.random.default_rng(0)

    kinds: list[type[nn.Module]] = [Noisy, Edited, Drawn]
    for kind in kinds:
        kind.__qualname__ = "Same"
    keys = [DefaultTrainer(factory_builder(kind)).key for kind in kinds]
    assert None not in keys
    assert len(set(keys)) == 3
    assert DefaultTrainer(factory_builder(Noisy)).key == keys[0]
    assert DefaultTrainer(factory_builder(Unknown)).key is None


def test_the_description_says_the_loss_of_the_task() -> None:
    trainer = DefaultTrainer(fresh_builder(nn.Linear(4, 1)), origin="here")
    assert "loss by the task" in trainer.description
    trainer.settle_loss("regression")
    assert trainer.description.startswith("here (default trainer: adam")
    assert trainer.description.endswith("mse)")


def test_worker_processes_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    build = fresh_builder(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 2)))

    def images(seed: int) -> Job:
        records = job(seed).records
        inputs = records.inputs.reshape(-1, 1, 2, 2)
        return Job(Records(records.ids, inputs, records.labels), seed)

    work = [images(seed) for seed in range(3)]
    here = collect(DefaultTrainer(build, TrainingConfig(epochs=2), workers=1), work)
    monkeypatch.setattr(trainers, "_WORTH_WORKERS", -1.0)
    there = collect(DefaultTrainer(build, TrainingConfig(epochs=2), workers=2), work)
    assert [bits(there[n]) for n in range(3)] == [bits(here[n]) for n in range(3)]


def test_workers_start_before_the_first_model_where_its_time_can_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[int] = []
    monkeypatch.setattr(
        trainers, "_in_processes", lambda *_, first, processes: started.append(first)
    )
    monkeypatch.setattr(trainers, "_WORTH_WORKERS", 0.0)
    here = {"workers": 2, "ray_address": None}
    trainers.run_each(lambda _: None, [job()] * 3, lambda *_: None, **here)  # type: ignore[arg-type]
    trainers.run_each(lambda _: None, [job()] * 3, lambda *_: None, **here, expected=1.0)  # type: ignore[arg-type]
    convolution = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 4), nn.Flatten())
    collect(DefaultTrainer(fresh_builder(convolution), workers=2), [job()] * 3)
    assert started == [1, 0, 0]


def test_a_worker_gets_its_own_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = joblib.delayed

    def delayed(function: Any) -> Any:
        sizes.append(len(cloudpickle.dumps(function)))
        return plain(function)

    monkeypatch.setattr(joblib, "delayed", delayed)
    monkeypatch.setattr(trainers, "_WORTH_WORKERS", -1.0)
    work = [job(seed, num=5000) for seed in range(3)]
    trainers.run_each(_nothing, work, lambda *_: None, workers=2, ray_address=None, expected=1.0)
    assert len(sizes) == 3
    assert max(sizes) < work[0].records.inputs.nbytes / 4


def _nothing(_: Job) -> None:
    return None


def test_a_users_function_gets_a_fresh_module_a_data_set_and_a_seed() -> None:
    seen: list[tuple[Any, int, int]] = []

    def train(model: nn.Module, dataset: RecordsDataset, *, seed: int) -> nn.Module:
        seen.append((model, len(dataset), seed))
        return fit(model, dataset, seed=seed)

    work = [job(0), job(1)]
    found = collect(FunctionTrainer(train, fresh_builder(nn.Linear(4, 2))), work)
    assert sorted(found) == [0, 1]
    assert [(n, s) for _, n, s in seen] == [(30, 0), (30, 1)]
    assert len(list(RecordsDataset(job()))) == 30


@pytest.mark.parametrize(
    ("answer", "message"),
    [(None, "must return the trained model"), (ZeroDivisionError("no"), "ZeroDivisionError: no")],
)
def test_a_users_function_that_fails(answer: Any, message: str) -> None:
    def train(model: nn.Module, dataset: RecordsDataset, *, seed: int) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(InputError, match=message):
        collect(FunctionTrainer(train, fresh_builder(nn.Linear(4, 2))), [job()])

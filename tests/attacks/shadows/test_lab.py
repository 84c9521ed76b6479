"""The laboratory: what is trained once, what is kept, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks.shadows import target as targets
from attacks.shadows.lab import Lab
from attacks.shadows.store import Store, entry_key
from attacks.shadows.target import Target, Task, module_target, residuals
from attacks.shadows.trainers import DefaultTrainer, OnModel
from attacks.shadows.training import Build, Job, TrainingConfig, factory_builder, fresh_builder
from attacks.shadows.workshop import Workshop
from fl_audit.errors import InputError, TraceError
from fl_audit.records import Records

AUDITED, AUXILIARY = 120, 200


class CountingTrainer(DefaultTrainer):
    """Counts models, and can be killed after some."""

    def __init__(self, *, dies_after: int = 10**9, build: Build | None = None) -> None:
        super().__init__(build or fresh_builder(nn.Linear(5, 3)), TrainingConfig(epochs=1))
        self.trained, self._dies_after = 0, dies_after

    def train(self, jobs: Sequence[Job], on_model: OnModel) -> None:
        def count(number: int, model: Any) -> None:
            if self.trained == self._dies_after:
                raise KeyboardInterrupt
            self.trained += 1
            on_model(number, model)

        super().train(jobs, count)


def pool(shift: float = 0.0) -> Records:
    rng = np.random.default_rng(0)
    num = AUDITED + AUXILIARY
    inputs = rng.normal(size=(num, 5)).astype(np.float32)
    inputs[3] += shift
    return Records(np.arange(num), inputs, rng.integers(3, size=num))


def workshop(
    trainer: DefaultTrainer | None, folder: Path | None = None, **changes: Any
) -> Workshop:
    return Workshop(
        changes.pop("pool", pool()),
        AUDITED,
        Task("classification", 3),
        trainer=trainer,
        build=None if trainer is None else trainer.build,
        train_size=AUDITED // 2,
        seed=changes.pop("seed", 0),
        store=Store(folder),
    )


def lab(shop: Workshop) -> Lab:
    target = module_target(fresh_builder(nn.Linear(5, 3))(7))
    rows = np.arange(len(shop.pool))
    return Lab(shop, target, rows[:AUDITED], rows[AUDITED:])


def weights(shop: Workshop, num: int) -> list[bytes]:
    modules = [shadow.target.module for shadow in shop.shadows("online", num)]
    assert all(m is not None for m in modules)
    return [m.weight.numpy().tobytes() for m in modules if isinstance(m, nn.Linear)]


def test_more_models_keep_those_there_were() -> None:
    trainer = CountingTrainer()
    shop = workshop(trainer)
    first = weights(shop, 2)
    assert weights(shop, 4)[:2] == first
    assert trainer.trained == 4


def test_an_interrupted_training_goes_on_with_the_same_models(tmp_path: Path) -> None:
    whole = weights(workshop(CountingTrainer()), 6)
    for dies_after in (0, 1, 3):
        folder = tmp_path / str(dies_after)
        with pytest.raises(KeyboardInterrupt):
            workshop(CountingTrainer(dies_after=dies_after), folder).shadows("online", 6)
        again = CountingTrainer()
        assert weights(workshop(again, folder), 6) == whole
        assert again.trained == 6 - dies_after


@pytest.mark.parametrize("changes", [{"pool": pool(0.5)}, {"seed": 1}])
def test_a_changed_row_or_seed_is_never_served_what_was_stored(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    workshop(CountingTrainer(), tmp_path).shadows("online", 2)
    trainer = CountingTrainer()
    workshop(trainer, tmp_path, **changes).shadows("online", 2)
    assert trainer.trained == 2


def test_answers_are_kept_by_weights_and_rows(tmp_path: Path) -> None:
    calls = []

    def counting(shop: Workshop, key: str) -> Target:
        inner = lab(shop).target
        return Target(lambda x: calls.append(len(x)) or inner.predict(x), key=key)

    for key, expected in [("a", 1), ("a", 1), ("b", 2)]:
        shop = workshop(None, tmp_path)
        shop.ask(counting(shop, key), np.arange(10))
        assert len(calls) == expected
    other = workshop(None, tmp_path, pool=pool(0.5))
    other.ask(counting(other, "a"), np.arange(10))
    assert len(calls) == 3


def test_a_model_without_identity_is_never_answered_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for shift in (0.0, 1.0):  # two runs: running numbers begin anew
        monkeypatch.setattr(targets, "_SERIAL", itertools.count())
        shop = workshop(None, tmp_path)
        module = fresh_builder(nn.Linear(5, 3))(7)
        assert isinstance(module.bias, nn.Parameter)
        with torch.no_grad():
            module.bias.add_(shift)
        vars(module)["rng"] = np.random.default_rng(0)
        target = targets.as_target(module, shop.task)
        found.append(shop.ask(target, np.arange(10)))
        assert np.array_equal(shop.ask(target, np.arange(10)), found[-1])
    assert np.allclose(found[1] - found[0], 1)
    assert list(tmp_path.iterdir()) == []


class Projected(nn.Module):
    """A random projection that is not saved with the weights."""

    projection: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(5, 4), persistent=False)
        self.inner = nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(inputs @ self.projection)
        return found


class Scaled(Projected):
    """The same in a plain attribute, which cannot be restored."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) * self.scale


@pytest.mark.parametrize(("kind", "again"), [(Projected, 0), (Scaled, 2)])
def test_a_stored_model_answers_as_it_did_or_is_trained_again(
    kind: type[nn.Module], again: int, tmp_path: Path
) -> None:
    answers = []
    for trained in (2, again):
        trainer = CountingTrainer(build=factory_builder(kind))
        shop = workshop(trainer, tmp_path)
        answers.append([shop.ask(s.target, np.arange(9)) for s in shop.shadows("online", 2)])
        assert trainer.trained == trained
        for entry in tmp_path.glob("answers-*"):
            entry.unlink()
    assert np.array_equal(answers[0], answers[1])


def test_regression_needs_no_word_on_the_loss() -> None:
    plain = pool()
    wanted = plain.inputs.sum(1).astype(np.float32)
    records = Records(plain.ids, plain.inputs, np.zeros_like(plain.labels), wanted)

    def shop(config: TrainingConfig) -> Workshop:
        trainer = DefaultTrainer(fresh_builder(nn.Linear(5, 1)), config)
        task = Task("regression", 2)
        return Workshop(records, AUDITED, task, trainer=trainer, train_size=60, seed=0)

    found = shop(TrainingConfig(epochs=100, learning_rate=0.05))
    (shadow,) = found.shadows("offline", 1)
    assert np.abs(residuals(shadow.target, records)).mean() < 0.2
    assert "mse" in found.origin("offline")
    with pytest.raises(InputError, match=r"training.loss = 'cross_entropy'"):
        shop(TrainingConfig(loss="cross_entropy"))


def test_a_damaged_entry_is_an_error_and_not_a_number(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep("answers", "k", {"answers": np.zeros(2)})
    (tmp_path / "answers-k.safetensors").write_bytes(b"not a file of ours")
    with pytest.raises(TraceError, match="damaged"):
        Store(tmp_path).find("answers", "k")
    assert entry_key("a", 1) != entry_key("a", 2)


def test_offline_models_never_see_an_audited_record() -> None:
    shadows = lab(workshop(CountingTrainer())).shadows("offline", 4)
    assert not shadows.in_shadow.any()
    assert shadows.population_in_shadow.any()


def test_calibration_leaves_out_the_model_that_plays_the_target_and_its_pair() -> None:
    work = lab(workshop(CountingTrainer()))
    played = work.calibration("online", 6)
    assert played is not None
    task, is_member = played
    assert task.left_out == {0, 1}
    shadows = task.shadows("online", 6)
    assert len(shadows) == 4
    first = work.workshop.shadows("online", 6)[0]
    assert (first.trained_on[task.rows] == is_member).all()
    assert not first.trained_on[task.population].any()
    counts = shadows.in_shadow.sum(axis=0)  # equal for members and non-members of the one left out
    assert set(counts) == {2}


def test_offline_calibration_asks_about_auxiliary_records_only() -> None:
    played = lab(workshop(CountingTrainer())).calibration("offline", 4)
    assert played is not None
    task, is_member = played
    assert (task.rows >= AUDITED).all()
    assert not np.isin(task.population, task.rows).any()
    assert 0 < is_member.sum() < len(is_member)


def test_without_a_trainer_the_message_says_what_to_give() -> None:
    with pytest.raises(InputError, match="Give train_fn=train or training="):
        lab(workshop(None)).shadows("online", 2)
    assert lab(workshop(None)).calibration("online", 2) is None


def test_too_few_shadow_models_says_how_many_and_what_instead() -> None:
    with pytest.raises(InputError, match=r"at least 3.*Raise num_shadow_models to 3.*population"):
        lab(workshop(CountingTrainer())).shadows("online", 2, least=3, instead="population")


def test_too_few_auxiliary_records_for_offline() -> None:
    records = pool().take(np.arange(AUDITED + 5))
    with pytest.raises(InputError, match="auxiliary records = 5"):
        workshop(CountingTrainer(), pool=records).shadows("offline", 2)


def test_distilled_models_imitate_their_teacher() -> None:
    trainer = CountingTrainer()
    trainer.config = TrainingConfig(epochs=200, learning_rate=0.05)
    work = lab(workshop(trainer))
    (first,), (second,) = work.distilled(num=2)
    wanted = work.logits().argmax(1)
    for model in (first, second):
        assert (work.logits(model).argmax(1) == wanted).mean() > 0.9
    assert first.key != second.key
    epochs = work.distilled(num=1, snapshots=True)[0]
    assert len(epochs) == 200


def test_targets_differ_by_their_records_only() -> None:
    shop = workshop(CountingTrainer())
    rows = np.arange(20)
    found = shop.targets(rows[:-1], rows, 2)
    assert len(found) == 4
    keys = {t.key for t in found}
    assert len(keys) == 4
    assert shop.targets(rows[:-1], rows, 2) is found

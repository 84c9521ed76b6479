"""The laboratory of an attack on a model: the target, records, and models trained to compare with.

An attack asks for what it needs; what two attacks need is trained and computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.shadows.assignment import pair_masks
from attacks.shadows.identity import module_digest
from attacks.shadows.store import Entry, Store, entry_key
from attacks.shadows.target import (
    Target,
    Task,
    answer,
    ask,
    callable_target,
    module_target,
    residuals,
)
from attacks.shadows.trainers import DefaultTrainer, Trainer
from attacks.shadows.training import Build, Job, TrainingConfig, train_one
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.randomness import derived_seed
from fl_audit.records import Records

Mode = Literal["online", "offline"]
Transform = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Progress = Callable[[str, int, int], None]
DEFAULT_SHADOWS = 16
_LEAST_AUXILIARY = 20  # records: halves of fewer train no model worth the name
_LEAST_CALIBRATION = 20  # known members, and as many known non-members
_DISTILLED_KEPT = 4  # sets of distilled models held in memory
_SERIAL = itertools.count()
_UNNAMED = "unnamed "  # begins the key of a model without an identity; for memory only
_BUFFER = "buffer:"  # begins the stored name of a buffer that is not in the state_dict


@dataclass(frozen=True, slots=True, eq=False)
class Shadow:
    """A model whose training records are known.

    Attributes:
        target: Ask it like the target.
        trained_on: True for records of the pool that it was trained on, shape (pool,).
    """

    target: Target
    trained_on: NDArray[np.bool_]


class Workshop:
    """Trains shadow models and keeps them: one for an audit, shared by its attacks.

    Args:
        pool: All records: audited ones first, then auxiliary ones.
        num_audited: How many of the pool are audited.
        trainer: How models are trained; None: not at all.
        build: Makes a fresh module of the target's kind; None where that is not known.
        config: How distilled models are trained.
        train_size: How many records the target was trained on; shadow models take as many.
        store: Where weights and answers are kept.
    """

    def __init__(
        self,
        pool: Records,
        num_audited: int,
        task: Task,
        *,
        trainer: Trainer | None,
        build: Build | None = None,
        config: TrainingConfig | None = None,
        train_size: int,
        seed: int,
        store: Store | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        if isinstance(trainer, DefaultTrainer):
            trainer.settle_loss(task.kind)
        self.pool, self.num_audited, self.task = pool, num_audited, task
        self.trainer, self.build, self.device = trainer, build, device
        self.config = config or _config_of(trainer)
        self.train_size, self.seed, self.store = train_size, seed, store or Store()
        self._progress = progress
        self._shadows: dict[tuple[str, int], Shadow] = {}
        self._distilled: dict[tuple[object, ...], list[list[Target]]] = {}
        self._targets: dict[tuple[bytes, bytes, int], list[Target]] = {}
        self._records_digest: str | None = None
        self._architecture: str | None = None
        self._digests: dict[bytes, str] = {}

    @property
    def num_auxiliary(self) -> int:
        """Records of the pool that are not audited."""
        return len(self.pool) - self.num_audited

    def trained(self) -> dict[str, int]:
        """Mode -> how many shadow models were trained so far."""
        modes = [mode for mode, _ in self._shadows]
        return {mode: modes.count(mode) for mode in sorted(set(modes))}

    def origin(self, mode: Mode) -> str:
        """How shadow models of a mode came about: how trained, on how many records, of what."""
        trained = self.trainer.description if self.trainer is not None else "nothing"
        sizes = [int(s.trained_on.sum()) for (m, _), s in self._shadows.items() if m == mode]
        records = (
            "audited records, drawn by lot without regard to their membership, and auxiliary ones"
            if mode == "online"
            else "auxiliary records only"
        )
        size = f" of {min(sizes)} to {max(sizes)}" if sizes else ""
        return (
            f"Mode {mode}: models to compare with were trained by {trained}, on sets{size} "
            f"records: {records}. Auxiliary records: {self.num_auxiliary}. The target was trained "
            f"on {self.train_size}."
        )

    def shadows(self, mode: Mode, num: int) -> list[Shadow]:
        """The first `num` shadow models of a mode; those that are missing are trained.

        Raises:
            InputError: If nothing can be trained, or there are too few records to train on.
        """
        missing = [n for n in range(num) if (mode, n) not in self._shadows]
        if missing:
            self._check(mode)
            self._train(mode, missing)
        return [self._shadows[mode, n] for n in range(num)]

    def targets(
        self, without: NDArray[np.int64], with_it: NDArray[np.int64], num: int
    ) -> list[Target]:
        """Models trained on one set of rows and on another in turn, `num` of each.

        Both of a pair have the same seed, so that they differ by the records alone.
        """
        key = (without.tobytes(), with_it.tobytes(), num)
        if key in self._targets:
            return self._targets[key]
        self._check("online")
        assert self.trainer is not None
        jobs = [
            Job(self.pool.take(rows), derived_seed(self.seed, "target", number))
            for number in range(num)
            for rows in (without, with_it)
        ]
        found: dict[int, Target] = {}

        def on_model(place: int, model: Any) -> None:
            found[place] = self._as_target(model)
            self._tell("target models", len(found), len(jobs))

        self.trainer.train(jobs, on_model)
        self._targets[key] = [found[place] for place in range(len(jobs))]
        return self._targets[key]

    def distilled(
        self,
        teacher: Target,
        rows: NDArray[np.int64],
        *,
        num: int,
        snapshots: bool = False,
        temperature: float = 1.0,
    ) -> list[list[Target]]:
        """Models that imitate a teacher's answers on rows of the pool, by the default trainer.

        Each learns from half of a draw from the rows; of every two, from the two halves. Give rows
        that the teacher was not trained on, or what it remembers is handed on with its answers.

        Args:
            snapshots: Keep the model after every epoch; otherwise only the last.
            temperature: The teacher's logits are divided by it.

        Returns:
            `num` lists of models, in the order of epochs.
        """
        if self.build is None:
            raise InputError(
                "distilled models",
                "no model factory",
                "need a model whose architecture is known",
                'Pass the torch module itself, or model_factory="my_module:build".',
            )
        if len(rows) < _LEAST_AUXILIARY:
            raise _too_few(len(rows))
        key = (teacher.key, rows.tobytes(), num, snapshots, temperature)
        if teacher.key is not None and key in self._distilled:  # candidates and null share them
            return self._distilled[key]
        soft = self._lesson(teacher, rows, temperature)
        jobs = [self._imitation(rows, soft, number) for number in range(num)]
        loss = "mse" if self.task.kind == "regression" else "cross_entropy"
        config = self.config.model_copy(update={"loss": loss})
        models: list[list[Target]] = [[] for _ in jobs]

        def keep(number: int, model: nn.Module) -> None:
            models[number].append(self._as_target(model))
            if not snapshots:
                self._tell("distilled models", sum(map(bool, models)), num)

        if not snapshots:
            DefaultTrainer(self.build, config, device=self.device).train(jobs, keep)
            return self._remember(key, models)
        for number, job in enumerate(jobs):
            note = partial(keep, number)
            train_one(self.build, job, config, device=self.device, on_epoch=note)
            self._tell("distilled models", number + 1, num)
        return self._remember(key, models)

    def _remember(self, key: tuple[object, ...], models: list[list[Target]]) -> list[list[Target]]:
        self._distilled[key] = models
        while len(self._distilled) > _DISTILLED_KEPT:
            self._distilled.pop(next(iter(self._distilled)))
        return models

    def _lesson(
        self, teacher: Target, rows: NDArray[np.int64], temperature: float
    ) -> NDArray[np.float32]:
        """A teacher's answers as a distilled model should give them: probabilities, or numbers."""
        if self.task.kind == "classification":
            logits = torch.from_numpy(self.ask(teacher, rows) / temperature)
            return torch.softmax(logits, 1).float().numpy()
        if temperature != 1:
            raise InputError(
                "temperature", temperature, "a regression model has none", "Use temperature = 1."
            )
        records = self.pool.take(rows)
        answers = residuals(teacher, records) + np.asarray(records.targets, dtype=np.float64)
        return answers[:, None].astype(np.float32)

    def _imitation(self, rows: NDArray[np.int64], soft: NDArray[np.float32], number: int) -> Job:
        """What a distilled model learns from; `soft` has one row of answers for each of `rows`."""
        both = pair_masks(
            0,
            len(rows),
            mode="distilled",
            train_size=self.train_size,
            seed=self.seed,
            pair=number // 2,
        )
        chosen = np.flatnonzero(both[number % 2])
        seed = derived_seed(self.seed, "distilled", number)
        return Job(self.pool.take(rows[chosen]), seed, soft[chosen])

    def ask(
        self,
        target: Target,
        rows: NDArray[np.int64],
        *,
        transform: Transform | None = None,
        transform_key: str = "",
    ) -> NDArray[np.float64]:
        """Logits of a model on rows of the pool, (n, classes); kept under weights + records.

        Args:
            transform: Changes inputs before the model sees them.
            transform_key: What it does, for the key of what is kept; without one nothing is kept.
        """
        records = self.pool.take(rows)
        if transform is not None:
            records = _transformed(records, transform)
        key = None
        if target.key is not None and (transform is None or transform_key):
            parts = (target.key, self._digest(rows), transform_key, self.task.kind)
            key = entry_key(*parts, self.task.num_classes, self.task.scale)
        named = target.key is not None and not target.key.startswith(_UNNAMED)
        compute = partial(ask, target, records, self.task)
        return self.store.answers(key, compute, on_disk=named)

    def _check(self, mode: Mode) -> None:
        if mode not in ("online", "offline"):
            raise InputError("mode", mode, "unknown mode", "Use 'online' or 'offline'.")
        if self.trainer is None:
            raise InputError(
                "train_fn",
                None,
                "this attack compares with models that it trains, and nothing says how",
                "Give train_fn=train or training=..., or use attacks without shadow models: "
                "population, loss_threshold, gap.",
            )
        if mode == "offline" and self.num_auxiliary < _LEAST_AUXILIARY:
            raise _too_few(self.num_auxiliary)

    def _train(self, mode: Mode, numbers: Sequence[int]) -> None:
        assert self.trainer is not None
        left: list[int] = []
        for number in numbers:
            weights = self._stored(mode, number)
            if weights is None:
                left.append(number)
            else:
                self._add(mode, number, weights)
        jobs = [self._job(mode, number) for number in left]
        done = 0
        if jobs:
            self._tell("shadow models", 0, len(jobs))

        def on_model(place: int, model: Any) -> None:
            nonlocal done
            done += 1
            self._keep(mode, left[place], model)
            self._add(mode, left[place], model)
            self._tell("shadow models", done, len(jobs))

        if jobs:
            self.trainer.train(jobs, on_model)

    def _job(self, mode: Mode, number: int) -> Job:
        rows = np.flatnonzero(self._masks(mode, number))
        return Job(self.pool.take(rows), derived_seed(self.seed, "shadow", mode, number))

    def _masks(self, mode: Mode, number: int) -> NDArray[np.bool_]:
        both = pair_masks(
            self.num_audited,
            self.num_auxiliary,
            mode=mode,
            train_size=self.train_size,
            seed=self.seed,
            pair=number // 2,
        )
        mask: NDArray[np.bool_] = both[number % 2]
        return mask

    def _add(self, mode: Mode, number: int, model: Any) -> None:
        target = self._as_target(model)
        self._shadows[mode, number] = Shadow(target, self._masks(mode, number))

    def _as_target(self, model: Any) -> Target:
        if isinstance(model, nn.Module):
            target = module_target(model, device=self.device)
        else:
            target = (
                model if isinstance(model, Target) else callable_target(model, kind=self.task.kind)
            )
        # without an identity its answers may be kept in memory, under a name of its own
        return target if target.key else replace(target, key=f"{_UNNAMED}{next(_SERIAL)}")

    def _stored(self, mode: Mode, number: int) -> nn.Module | None:
        key = self._key(mode, number)
        found = None if key is None else self.store.find("weights", key)
        if found is None or self.build is None:
            return None
        return _rebuilt(self.build, found)

    def _keep(self, mode: Mode, number: int, model: Any) -> None:
        key = self._key(mode, number)
        module = model.module if isinstance(model, Target) else model
        if key is None or not isinstance(module, nn.Module) or self.store.folder is None:
            return
        assert self.build is not None  # or there is no key
        entry = _entry(self.build, module)
        if entry is not None:
            self.store.keep("weights", key, entry)

    def _key(self, mode: Mode, number: int) -> str | None:
        """Everything that a shadow model depends on."""
        if self.trainer is None or self.trainer.key is None or self.build is None:
            return None
        if self._records_digest is None:
            self._records_digest = self.pool.digest()
        if self._architecture is None:  # what is stored is read into such a module
            self._architecture = module_digest(self.build(0))
            if self._architecture is None:
                return None
        what = (self.trainer.key, self._architecture, self._records_digest)
        sizes = (self.num_audited, self.train_size)
        return entry_key(*what, sizes, self.seed, mode, number)

    def _digest(self, rows: NDArray[np.int64]) -> str:
        name = rows.tobytes()
        if name not in self._digests:
            self._digests[name] = self.pool.take(rows).digest()
        return self._digests[name]

    def _tell(self, what: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(what, done, total)


@dataclass(frozen=True, slots=True, eq=False)
class Lab:
    """What one run of an attack on a model works with. It tells nothing about who is a member.

    Attributes:
        target: The model that is attacked.
        rows: Candidates: rows of the workshop's pool.
        population: Records of the same distribution that the adversary has: rows of the pool.
        left_out: Numbers of shadow models that must not be used, because one plays the target.
        proxy: Another model that the adversary has, in a laboratory of its own, and which of that
            laboratory's candidates it was trained on; None where there is none.
    """

    workshop: Workshop
    target: Target
    rows: NDArray[np.int64]
    population: NDArray[np.int64]
    left_out: frozenset[int] = field(default_factory=frozenset)
    proxy: tuple[Lab, NDArray[np.bool_]] | None = None

    @property
    def task(self) -> Task:
        """Classification or regression."""
        return self.workshop.task

    @property
    def candidates(self) -> Records:
        """The records to score."""
        return self.workshop.pool.take(self.rows)

    @property
    def auxiliary(self) -> Records:
        """Records of the same distribution, none of them among the target's by the game's rules."""
        return self.workshop.pool.take(self.population)

    def require_population(self, least: int = _LEAST_AUXILIARY) -> None:
        """Refuse to go on with fewer auxiliary records.

        Raises:
            InputError: Saying how many there are.
        """
        if len(self.population) < least:
            raise _too_few(len(self.population), least)

    def logits(
        self, target: Target | None = None, *, transform: Transform | None = None, key: str = ""
    ) -> NDArray[np.float64]:
        """Logits of the target (or another model) on the candidates, shape (n, classes)."""
        model = self.target if target is None else target
        return self.workshop.ask(model, self.rows, transform=transform, transform_key=key)

    def classes(self, inputs: NDArray[np.float32]) -> NDArray[np.int64]:
        """The target's answers to any inputs as classes, (n,): all that a label-only attack sees.

        Raises:
            InputError: If the model predicts numbers instead of classes.
        """
        if self.task.kind != "classification":
            raise InputError(
                "model", "regression", "this attack needs classes", "Use loss_threshold or rmia."
            )
        answers = answer(self.target, inputs)
        if answers.shape[1] != self.task.num_classes or np.isnan(answers).any():
            raise InputError(
                "answers of the model",
                answers.shape,
                f"must be ({len(inputs)}, {self.task.num_classes}), without NaN",
                "Check the model's weights and output.",
            )
        found: NDArray[np.int64] = answers.argmax(axis=1)
        return found

    def population_logits(self, target: Target | None = None) -> NDArray[np.float64]:
        """Logits of the target (or another model) on the population, shape (m, classes)."""
        return self.workshop.ask(self.target if target is None else target, self.population)

    def shadows(self, mode: Mode, num: int, *, least: int = 1, instead: str = "") -> ShadowSignals:
        """Shadow models without those left out.

        Args:
            num: How many are trained; fewer are returned where some are left out.
            least: How many the attack cannot do without.
            instead: What to use where there are fewer, for the message.

        Raises:
            InputError: If fewer than `least` remain.
        """
        models = [
            shadow
            for number, shadow in enumerate(self.workshop.shadows(mode, num))
            if number not in self.left_out
        ]
        if len(models) < least:
            raise InputError(
                "num_shadow_models",
                len(models),
                f"this attack needs at least {least}",
                f"Raise num_shadow_models to {least + len(self.left_out)} or more"
                + (f", or use {instead}, which needs fewer." if instead else "."),
            )
        return ShadowSignals(self, models)

    def calibration(self, mode: Mode, num: int) -> tuple[Lab, NDArray[np.bool_]] | None:
        """The same task with a known answer: a shadow model plays the target.

        Its pair is left out with it: the two trained on complementary halves, so one would tell
        about the other.

        Returns:
            A laboratory, and which of its candidates are members; None if there are too few models
            or records for it.
        """
        workshop = self.workshop
        number = next((n for n in range(0, num, 2) if n not in self.left_out), num)
        if number >= num or workshop.trainer is None:
            return None
        played = workshop.shadows(mode, num)[number]
        audited = np.arange(len(workshop.pool)) < workshop.num_audited
        pair = workshop.shadows(mode, num)[number + 1] if number + 1 < num else None
        drawn = played.trained_on if pair is None else played.trained_on | pair.trained_on
        choice = np.flatnonzero(audited if mode == "online" else drawn & ~audited)
        population = self.population
        if mode == "offline":  # half of the draw is asked about, the rest is population
            rng = np.random.default_rng(derived_seed(workshop.seed, "calibration", number))
            choice = np.sort(rng.permutation(choice)[: max(2, len(choice) // 2)])
            population = np.setdiff1d(population, choice)
        is_member = played.trained_on[choice]
        if min(is_member.sum(), (~is_member).sum()) < _LEAST_CALIBRATION:
            return None
        lab = replace(
            self,
            target=played.target,
            rows=choice,
            population=population[~played.trained_on[population]],
            left_out=self.left_out | {number, number + 1},
        )
        return lab, is_member

    def distilled(
        self, *, num: int, snapshots: bool = False, temperature: float = 1.0
    ) -> list[list[Target]]:
        """Models distilled from the target on its population (see `Workshop.distilled`)."""
        return self.workshop.distilled(
            self.target, self.population, num=num, snapshots=snapshots, temperature=temperature
        )


@dataclass(frozen=True, slots=True, eq=False)
class ShadowSignals:
    """What shadow models say about a laboratory's records; k models, n candidates, m population."""

    lab: Lab
    models: list[Shadow]

    def __len__(self) -> int:
        return len(self.models)

    @property
    def in_shadow(self) -> NDArray[np.bool_]:
        """True where a model was trained on a candidate, shape (k, n)."""
        return np.stack([shadow.trained_on[self.lab.rows] for shadow in self.models])

    @property
    def population_in_shadow(self) -> NDArray[np.bool_]:
        """True where a model was trained on a record of the population, shape (k, m)."""
        return np.stack([shadow.trained_on[self.lab.population] for shadow in self.models])

    def logits(self, *, transform: Transform | None = None, key: str = "") -> NDArray[np.float64]:
        """Logits on the candidates, shape (k, n, classes)."""
        ask = self.lab.logits
        return np.stack([ask(s.target, transform=transform, key=key) for s in self.models])

    def population_logits(self) -> NDArray[np.float64]:
        """Logits on the population, shape (k, m, classes)."""
        return np.stack([self.lab.population_logits(s.target) for s in self.models])


def require_lab(given: AttackInput) -> Lab:
    """The laboratory of an attack on a model.

    Raises:
        InputError: If there is none: the attack was given records only, or no model to ask.
    """
    if not isinstance(given.lab, Lab):
        raise InputError(
            "model",
            None,
            "this attack needs a model to ask and records to ask about",
            'Name the architecture: --model "my_module:build", or CuriousStrategy(model=...).',
        )
    return given.lab


def _entry(build: Build, module: nn.Module) -> Entry | None:
    """A module's weights and buffers; None if the same module cannot be built from them.

    So it is if training returns another kind of module, or leaves something in plain attributes:
    such models are trained again after an interruption.
    """
    tensors: dict[str, Any] = dict(module.state_dict())
    tensors |= {_BUFFER + n: b for n, b in module.named_buffers() if n not in tensors}
    if not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        return None  # extra state of any kind
    try:
        entry = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
        again = module_digest(_rebuilt(build, entry))
    except (RuntimeError, TypeError, AttributeError):  # another kind of module; a type numpy lacks
        return None
    return entry if again is not None and again == module_digest(module) else None


def _rebuilt(build: Build, entry: Entry) -> nn.Module:
    """The module whose weights and buffers these are."""
    module = build(0)
    found = {name: torch.from_numpy(np.array(array)) for name, array in entry.items()}
    module.load_state_dict({n: t for n, t in found.items() if not n.startswith(_BUFFER)})
    for name, tensor in found.items():
        if name.startswith(_BUFFER):
            path, _, own = name.removeprefix(_BUFFER).rpartition(".")
            # a factory may draw it anew each time, and the state_dict leaves it out
            setattr(module.get_submodule(path), own, tensor)
    return module


def _config_of(trainer: Trainer | None) -> TrainingConfig:
    return trainer.config if isinstance(trainer, DefaultTrainer) else TrainingConfig()


def _too_few(count: int, least: int = _LEAST_AUXILIARY) -> InputError:
    return InputError(
        "auxiliary records",
        count,
        f"this attack needs at least {least} records that are not audited",
        "Give auxiliary=..., a larger population, or (in a scenario) a larger game.auxiliary.",
    )


def _transformed(records: Records, transform: Transform) -> Records:
    parts = [
        np.asarray(transform(np.asarray(records.inputs[rows])), dtype=np.float32)
        for rows in records.blocks()
    ]
    inputs = np.concatenate(parts) if parts else np.asarray(records.inputs)
    return Records(records.ids, inputs, records.labels, records.targets)

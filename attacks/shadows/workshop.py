"""The workshop of an audit: it trains the models that attacks compare with, and keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from attacks.shadows.assignment import LEAST_AUXILIARY, pair_masks, too_few
from attacks.shadows.distiller import Distiller, Progress
from attacks.shadows.identity import module_digest
from attacks.shadows.rebuilding import module_entry, rebuild
from attacks.shadows.store import Store, entry_key
from attacks.shadows.target import UNNAMED, Target, Task, as_target, ask
from attacks.shadows.trainers import DefaultTrainer, Trainer
from attacks.shadows.training import Build, Job, TrainingConfig
from fl_audit.errors import InputError
from fl_audit.randomness import derived_seed
from fl_audit.records import Records

Mode = Literal["online", "offline"]
Transform = Callable[[NDArray[np.float32]], NDArray[np.float32]]
DEFAULT_SHADOWS = 16


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
        self.train_size, self.seed, self.store = train_size, seed, store or Store()
        self._progress = progress
        self._shadows: dict[tuple[str, int], Shadow] = {}
        self._distiller = Distiller(
            pool,
            task,
            build=build,
            config=config or _config_of(trainer),
            train_size=train_size,
            seed=seed,
            device=device,
            progress=progress,
        )
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
        """Models that imitate a teacher on rows of the pool (see `Distiller.models`)."""
        return self._distiller.models(
            teacher, rows, num=num, snapshots=snapshots, temperature=temperature
        )

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
        named = target.key is not None and not target.key.startswith(UNNAMED)
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
        if mode == "offline" and self.num_auxiliary < LEAST_AUXILIARY:
            raise too_few(self.num_auxiliary)

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
        return as_target(model, self.task, device=self.device)

    def _stored(self, mode: Mode, number: int) -> nn.Module | None:
        key = self._key(mode, number)
        found = None if key is None else self.store.find("weights", key)
        if found is None or self.build is None:
            return None
        return rebuild(self.build, found)

    def _keep(self, mode: Mode, number: int, model: Any) -> None:
        key = self._key(mode, number)
        module = model.module if isinstance(model, Target) else model
        if key is None or not isinstance(module, nn.Module) or self.store.folder is None:
            return
        assert self.build is not None  # or there is no key
        entry = module_entry(self.build, module)
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


def _config_of(trainer: Trainer | None) -> TrainingConfig:
    return trainer.config if isinstance(trainer, DefaultTrainer) else TrainingConfig()


def _transformed(records: Records, transform: Transform) -> Records:
    parts = [
        np.asarray(transform(np.asarray(records.inputs[rows])), dtype=np.float32)
        for rows in records.blocks()
    ]
    inputs = np.concatenate(parts) if parts else np.asarray(records.inputs)
    return Records(records.ids, inputs, records.labels, records.targets)

"""Distilled models: they learn from a teacher's answers instead of labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.shadows.assignment import LEAST_AUXILIARY, pair_masks, too_few
from attacks.shadows.target import Target, Task, as_target, ask, residuals
from attacks.shadows.trainers import DefaultTrainer
from attacks.shadows.training import Build, Job, TrainingConfig, train_one
from fl_audit.errors import InputError
from fl_audit.randomness import derived_seed
from fl_audit.records import Records

_KEPT = 4  # sets of distilled models held in memory
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


class Distiller:
    """Trains models that imitate a teacher on records of a pool, and keeps the latest sets.

    Args:
        build: Makes a fresh module; None where the architecture is not known.
        config: How they are trained.
        train_size: How many records the teacher was trained on.
    """

    def __init__(
        self,
        pool: Records,
        task: Task,
        *,
        build: Build | None,
        config: TrainingConfig,
        train_size: int,
        seed: int,
        device: str,
        progress: Progress | None,
    ) -> None:
        self._pool, self._task, self._build = pool, task, build
        loss = "mse" if task.kind == "regression" else "cross_entropy"
        self._config = config.model_copy(update={"loss": loss})
        self._train_size, self._seed, self._device = train_size, seed, device
        self._progress = progress
        self._kept: dict[tuple[object, ...], list[list[Target]]] = {}

    def models(
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

        Raises:
            InputError: If the architecture is not known, or there are too few records.
        """
        if self._build is None:
            raise InputError(
                "distilled models",
                "no model factory",
                "need a model whose architecture is known",
                'Pass the torch module itself, or model_factory="my_module:build".',
            )
        if len(rows) < LEAST_AUXILIARY:
            raise too_few(len(rows))
        key = (teacher.key, rows.tobytes(), num, snapshots, temperature)
        if teacher.key is not None and key in self._kept:  # candidates and null share them
            return self._kept[key]
        soft = self._lesson(teacher, rows, temperature)
        jobs = [self._imitation(rows, soft, number) for number in range(num)]
        found = self._train(self._build, jobs, snapshots=snapshots)
        self._kept[key] = found
        while len(self._kept) > _KEPT:
            self._kept.pop(next(iter(self._kept)))
        return found

    def _train(self, build: Build, jobs: list[Job], *, snapshots: bool) -> list[list[Target]]:
        found: list[list[Target]] = [[] for _ in jobs]

        def keep(number: int, model: nn.Module) -> None:
            found[number].append(as_target(model, self._task, device=self._device))
            if not snapshots:
                self._tell(sum(map(bool, found)), len(jobs))

        if not snapshots:
            DefaultTrainer(build, self._config, device=self._device).train(jobs, keep)
            return found
        for number, job in enumerate(jobs):
            note = partial(keep, number)
            train_one(build, job, self._config, device=self._device, on_epoch=note)
            self._tell(number + 1, len(jobs))
        return found

    def _lesson(
        self, teacher: Target, rows: NDArray[np.int64], temperature: float
    ) -> NDArray[np.float32]:
        """A teacher's answers as a distilled model should give them: probabilities, or numbers."""
        records = self._pool.take(rows)
        if self._task.kind == "classification":
            logits = torch.from_numpy(ask(teacher, records, self._task) / temperature)
            return torch.softmax(logits, 1).float().numpy()
        if temperature != 1:
            raise InputError(
                "temperature", temperature, "a regression model has none", "Use temperature = 1."
            )
        answers = residuals(teacher, records) + np.asarray(records.targets, dtype=np.float64)
        return answers[:, None].astype(np.float32)

    def _imitation(self, rows: NDArray[np.int64], soft: NDArray[np.float32], number: int) -> Job:
        """What a distilled model learns from; `soft` has one row of answers for each of `rows`."""
        both = pair_masks(
            0,
            len(rows),
            mode="distilled",
            train_size=self._train_size,
            seed=self._seed,
            pair=number // 2,
        )
        chosen = np.flatnonzero(both[number % 2])
        seed = derived_seed(self._seed, "distilled", number)
        return Job(self._pool.take(rows[chosen]), seed, soft[chosen])

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress("distilled models", done, total)

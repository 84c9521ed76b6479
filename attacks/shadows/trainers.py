"""Trainers: from sets of records to models, in the way that suits them.

A trainer calls back with each model as soon as it is there, so that an interruption loses the
models in progress only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, cast

import joblib
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from attacks.devices import keep_freed_memory, one_thread
from attacks.shadows.identity import function_identity, module_digest
from attacks.shadows.training import (
    Build,
    Job,
    TrainingConfig,
    config_key,
    group_size,
    settled,
    train_one,
    train_together,
    trains_together,
)
from fl_audit.errors import AuditError, InputError
from fl_audit.records import Records

OnModel = Callable[[int, Any], None]
"""Called with (number of the job, trained model)."""
_WORTH_WORKERS = 8.0  # seconds of work left from which starting worker processes pays


class Trainer(Protocol):
    """Trains models like the target, from records that it is given."""

    @property
    def description(self) -> str:
        """One line for the report."""
        ...

    @property
    def key(self) -> str | None:
        """Identity for stored models; None if none can be given, and nothing is stored."""
        ...

    def train(self, jobs: Sequence[Job], on_model: OnModel) -> None:
        """Train a model for each job."""
        ...


class DefaultTrainer:
    """Optimizer, loss, epochs and batch size from a configuration.

    Models without convolutions train together as one batched model; others one by one, in worker
    processes where that pays, or as Ray tasks where an address is given.

    Args:
        build: Makes a fresh module from a seed.
        config: How to train.
        workers: Processes at most; as many as there are cores by default.
        ray_address: "host:port" of a Ray cluster to train on.
        origin: What to call it in the report, before the settings.
    """

    def __init__(
        self,
        build: Build,
        config: TrainingConfig | None = None,
        *,
        device: str = "cpu",
        workers: int | None = None,
        ray_address: str | None = None,
        origin: str | None = None,
    ) -> None:
        self.build, self.config, self.device = build, config or TrainingConfig(), device
        self._workers, self._ray, self._origin = workers, ray_address, origin
        self._sample = build(0)
        # its weights count, too: they say how the factory draws them
        self._architecture = module_digest(self._sample)

    @property
    def description(self) -> str:
        """One line for the report."""
        c = self.config
        text = (
            f"default trainer: {c.optimizer}, learning rate {c.learning_rate:g}, "
            f"{c.epochs} epochs, batch size {c.batch_size}, {c.loss or 'loss by the task'}"
        )
        return text if self._origin is None else f"{self._origin} ({text})"

    @property
    def key(self) -> str | None:
        """Identity for stored models; None if the architecture cannot be told."""
        if self._architecture is None:
            return None
        return f"default {config_key(self.config)} {self._architecture}"

    def settle_loss(self, task: Literal["classification", "regression"]) -> None:
        """Say which loss, where the configuration leaves it to the task.

        Raises:
            InputError: If the configuration names one that does not fit the task.
        """
        self.config = settled(self.config, has_targets=task == "regression")

    def train(self, jobs: Sequence[Job], on_model: OnModel) -> None:
        """Train a model for each job."""
        fits = all(self._group(len(j.records), j) > 1 for j in jobs)
        example = np.asarray(jobs[0].records.inputs[:2]) if jobs else None
        if example is not None and fits and trains_together(self._sample, example):
            # even one: its bits must not depend on the group
            self._train_together(jobs, on_model)
            return
        settled_already = len(jobs) < 2 or self._workers == 1 or self._ray is not None
        run_each(
            self._one,
            jobs,
            on_model,
            workers=self._workers,
            ray_address=self._ray,
            expected=None if settled_already else self._seconds(jobs[0]),
        )

    def _seconds(self, job: Job) -> float:
        """How long a job takes, from two batches: with a whole model workers would wait."""
        rows = np.arange(min(len(job.records), 2 * self.config.batch_size))
        soft = None if job.soft is None else job.soft[rows]
        few = Job(job.records.take(rows), job.seed, soft)
        short = self.config.model_copy(update={"epochs": 1})
        for _ in range(2):  # the first time, torch imports what steps need
            start = time.perf_counter()
            train_one(self.build, few, short, device=self.device)
            seconds = time.perf_counter() - start
        return seconds * self.config.epochs * len(job.records) / len(rows)

    def _one(self, job: Job) -> nn.Module:
        return train_one(self.build, job, self.config, device=self.device)

    def _group(self, num: int, job: Job) -> int:
        """How many models on so many records fit in memory; inputs of one alone may not."""
        return group_size(self._sample, num, int(np.prod(job.records.input_shape)))

    def _train_together(self, jobs: Sequence[Job], on_model: OnModel) -> None:
        """Groups of equal size; which models form one depends on the jobs only, never on time."""
        by_size: dict[tuple[int, bool], list[int]] = {}
        for number, job in enumerate(jobs):
            by_size.setdefault((len(job.records), job.soft is None), []).append(number)
        for (num, _), numbers in sorted(by_size.items()):
            most = self._group(num, jobs[0])
            for start in range(0, len(numbers), most):
                chosen = numbers[start : start + most]
                group = [jobs[n] for n in chosen]
                models = train_together(self.build, group, self.config, device=self.device)
                for number, model in zip(chosen, models, strict=True):
                    on_model(number, model)


class FunctionTrainer:
    """A user's `train(model, dataset, *, seed) -> model`.

    Args:
        function: Gets a freshly initialised module, a torch `Dataset` of (input, label) and a seed;
            returns the trained module, or any callable records -> probabilities.
        build: Makes the fresh module; without it the function gets None.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        build: Build | None,
        *,
        workers: int | None = None,
        ray_address: str | None = None,
    ) -> None:
        self._function, self._build = function, build
        self._workers, self._ray = workers, ray_address
        name = getattr(function, "__qualname__", type(function).__qualname__)
        self.description = f"the user's function {name}"
        self.key = function_identity(function, None if build is None else build(0))

    def train(self, jobs: Sequence[Job], on_model: OnModel) -> None:
        """Train a model for each job."""
        run_each(self._one, jobs, on_model, workers=self._workers, ray_address=self._ray)

    def _one(self, job: Job) -> Any:
        model = None if self._build is None else self._build(job.seed)
        try:
            with one_thread(), torch.random.fork_rng(devices=[]):
                torch.random.manual_seed(job.seed % 2**63)
                trained = self._function(model, RecordsDataset(job), seed=job.seed % 2**32)
        except Exception as error:  # users' code raises anything
            raise InputError(
                "train",
                self.description,
                f"raised {type(error).__name__}: {error}",
                "It is called as train(model, dataset, seed=...) and returns the trained model.",
            ) from error
        answers = callable(trained) or hasattr(trained, "predict_proba")
        if not answers and not hasattr(trained, "predict"):
            raise InputError(
                "train",
                type(trained).__name__,
                "must return the trained model",
                "End the function with `return model`.",
            )
        return trained


class RecordsDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A job's records as torch's data loaders want them; inputs are read when asked for."""

    def __init__(self, job: Job) -> None:
        self._records: Records = job.records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not -len(self) <= row < len(self):
            raise IndexError(row)  # ends a plain `for` over the data set
        records = self._records
        wanted = records.labels if records.targets is None else records.targets
        return torch.from_numpy(np.array(records.inputs[row])), torch.tensor(wanted[row])


def run_each(
    function: Callable[[Job], Any],
    jobs: Sequence[Job],
    on_model: OnModel,
    *,
    workers: int | None,
    ray_address: str | None,
    expected: float | None = None,
) -> None:
    """Call `function` on each job: here, in worker processes if that pays, or on a Ray cluster.

    Every call uses one torch thread, so where it runs does not change its result.

    Args:
        expected: Seconds that a call takes; the first call tells if not given.
    """
    if ray_address is not None:
        for number, model in _on_ray(function, jobs, ray_address):
            on_model(number, model)
        return
    start = time.perf_counter()
    for number, job in enumerate(jobs):
        left = len(jobs) - number
        processes = min(left, workers or os.cpu_count() or 1)
        if expected is not None and processes > 1 and expected * left > _WORTH_WORKERS:
            _in_processes(function, jobs, on_model, first=number, processes=processes)
            return
        on_model(number, function(job))
        expected = (time.perf_counter() - start) / (number + 1)


def _in_processes(
    function: Callable[[Job], Any],
    jobs: Sequence[Job],
    on_model: OnModel,
    *,
    first: int,
    processes: int,
) -> None:
    """loky's workers: they import nothing of a script that has no `if __name__` guard."""

    # a job is an argument: what a function merely refers to would go to the workers with each call
    def call(number: int, job: Job) -> tuple[int, Any]:
        torch.set_num_threads(1)
        keep_freed_memory()
        try:
            return number, function(job)
        except AuditError as error:
            return number, error

    parallel = joblib.Parallel(
        n_jobs=processes,
        return_as="generator_unordered",
        batch_size=1,
        max_nbytes=None,  # records go through pipes: no copy of them is left in a shared folder
    )
    calls = (joblib.delayed(call)(number, jobs[number]) for number in range(first, len(jobs)))
    found = cast("Iterable[tuple[int, Any]]", parallel(calls))
    for number, model in found:
        if isinstance(model, AuditError):
            raise model
        on_model(number, model)


def _on_ray(
    function: Callable[[Job], Any], jobs: Sequence[Job], address: str
) -> Iterator[tuple[int, Any]]:
    import ray

    ours = not ray.is_initialized()  # a Ray that somebody else started is left running
    if ours:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)

    def call(number: int, job: Job) -> tuple[int, Any]:
        torch.set_num_threads(1)
        keep_freed_memory()
        return number, function(job)

    task: Any = ray.remote(num_cpus=1)(call)
    try:
        waiting = [task.remote(number, job) for number, job in enumerate(jobs)]
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    finally:
        if ours:  # connected to a cluster that ends, this process would be ended with it
            ray.shutdown()

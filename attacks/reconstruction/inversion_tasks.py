"""From recorded updates to tasks of gradient inversion: models, gradients, and what is known."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.federated.rounds import SUM, Source
from attacks.reconstruction.inversion_settings import InversionSettings
from attacks.reconstruction.label_steps import LocalWork
from attacks.reconstruction.observed import Observed, observed
from attacks.reconstruction.optimisation.plan import LocalPlan
from attacks.reconstruction.optimisation.simulation import pseudo_gradient
from attacks.reconstruction.resimulation import pseudo_gradient_error
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining
from fl_audit.trace.query import load_weights

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One batch to search: its updates (several where rounds are joined), read as gradients.

    Attributes:
        seen: What was observed, by round.
        models: The received model of each.
        gradients: The gradient that each update stands for, by name; with changes of buffers.
        batch_size: Records behind it, or None if that is not known.
        labels: Known labels, or None.
        plan: Local steps, if they are unrolled.
        work: Local steps of each client, if there are several: labels allow for them.
        input_shape: Of one input.
        rate: Learning rate of the (first) round.
        notes: What was assumed.
    """

    seen: Sequence[Observed]
    models: Sequence[torch.nn.Module]
    gradients: Sequence[dict[str, Values]]
    batch_size: int | None
    labels: NDArray[np.int64] | None
    plan: LocalPlan | None
    work: LocalWork | None
    input_shape: tuple[int, ...]
    rate: float
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Which update, in words."""
        first = self.seen[0]
        who = "the sum" if first.client == SUM else f"client {first.client}"
        rounds = ", ".join(str(each.round) for each in self.seen)
        return f"round{'s' if len(self.seen) > 1 else ''} {rounds}, {who}"


def groups_of(given: AttackInput, source: Source) -> list[list[Observed]]:
    """Updates to search one batch for: each alone, or all of a client's rounds."""
    settings: InversionSettings = given.settings
    if not settings.join_rounds and settings.defence != "noise":
        return [[each] for each in observed(given, source)]
    groups: dict[int, list[Observed]] = {}
    for each in observed(given, source):
        groups.setdefault(each.client, []).append(each)
    return list(groups.values())


def task_of(given: AttackInput, seen: Sequence[Observed]) -> Task:
    """What is searched for one update, or for all of a client's together.

    Raises:
        InputError: If what a search needs is not known, or the settings exclude the update.
    """
    settings: InversionSettings = given.settings
    first, notes = seen[0], list[str]()
    local = first.local
    if local is None:
        given.view.local_training(first.behind[0])  # raises where nothing was recorded
        raise InputError(
            "local_training",
            f"clients {list(first.behind)}",
            "they train in different ways, so their sum is no one's update",
            "Attack single clients' updates.",
        )
    labels = _known_labels(given, first) if settings.labels == "known" else None
    batch_size = _batch_size(settings, first, local, labels, notes)
    if batch_size is not None and batch_size > settings.max_batch:
        raise InputError(
            "batch size",
            batch_size,
            f"is above max_batch = {settings.max_batch}",
            "Raise it; the search takes longer and finds less, the more records there are.",
        )
    each_client = _records_of_each(batch_size, first)
    steps = _steps(local, each_client)
    models = []
    if local.learning_rate_in(first.round) == 0:
        raise InputError(
            "learning_rate", 0.0, "nothing is sent in this round", "Choose an earlier round."
        )
    for each in seen:
        model = given.view.architecture().to(given.device)
        load_weights(model, each.model)
        models.append(model.train(settings.mode == "train"))
    plan, rate = None, local.learning_rate_in(first.round)
    if settings.unroll and first.client == SUM and len(first.behind) > 1:
        notes.append("a sum of several clients' steps cannot be unrolled; read as one gradient")
    elif settings.unroll and batch_size is not None:
        plan = LocalPlan(
            local, rate, batch_size, epoch_prior=settings.epoch_prior, orders=settings.orders
        )
    is_unrolled = plan is not None and plan.steps > 1
    parameters = {name for name, _ in models[0].named_parameters()}
    gradients = [_gradient(each, parameters, steps=steps, is_unrolled=is_unrolled) for each in seen]
    shape = _input_shape(given)
    work = None
    if each_client is not None and steps > 1:
        work = LocalWork(local, rate, each_client)
        notes += _assumption(given, models[0], first, work)
    return Task(seen, models, gradients, batch_size, labels, plan, work, shape, rate, tuple(notes))


def _batch_size(
    settings: InversionSettings,
    first: Observed,
    local: LocalTraining,
    labels: NDArray[np.int64] | None,
    notes: list[str],
) -> int | None:
    """Records behind an update, from what is granted; None: to be estimated."""
    if first.num_examples is not None:
        return round(first.num_examples)
    if labels is not None:
        return len(labels)
    if settings.batch_size is not None:
        return settings.batch_size
    if local.algorithm == "fedsgd":
        notes.append(f"batches are taken to be full: {local.batch_size} records a client")
        return local.batch_size * len(first.behind)
    return None


def _records_of_each(batch_size: int | None, first: Observed) -> int | None:
    """Records of the client behind an update; of the mean client behind a sum."""
    return None if batch_size is None else max(1, round(batch_size / len(first.behind)))


def _steps(local: LocalTraining, each_client: int | None) -> int:
    """Local steps of each client.

    Raises:
        InputError: If they depend on a number of records that is not known.
    """
    if local.algorithm == "fedsgd":
        return 1
    if each_client is None:
        raise InputError(
            "batch_size",
            None,
            "how many steps a client took depends on how many records it has, which is not known",
            "Grant example-counts, or set batch_size.",
        )
    return local.steps(each_client)


def _assumption(
    given: AttackInput, model: torch.nn.Module, first: Observed, work: LocalWork
) -> list[str]:
    """How good it is to read several steps as one gradient, on the adversary's own records."""
    if given.auxiliary is None:
        return []
    error = pseudo_gradient_error(
        model,
        given.auxiliary,
        work.training,
        first.round,
        num_examples=work.num_examples,
        rng=given.rng,
    )
    if error is None:
        return []
    return [
        f"re-simulated on auxiliary records, {work.steps} local steps read as one gradient are "
        f"off by {100 * error:.2g} % of its norm"
    ]


def _gradient(
    each: Observed, parameters: Collection[str], *, steps: int, is_unrolled: bool
) -> dict[str, Values]:
    """The gradient that an update stands for, and how buffers changed.

    Args:
        steps: Local steps of each client behind the update.
        is_unrolled: Unrolled steps have weight decay of their own.
    """
    local = each.local
    assert local is not None  # checked by the caller
    rate = local.learning_rate_in(each.round)
    update = {name: each.update[name] for name in each.update}
    moved = {name: value for name, value in update.items() if name in parameters}
    found = pseudo_gradient(moved, rate, steps, local.momentum)
    if local.weight_decay and not is_unrolled:
        for name in found:
            found[name] = found[name] - local.weight_decay * each.model[name].astype(np.float64)
    return {**update, **found}


def _input_shape(given: AttackInput) -> tuple[int, ...]:
    settings: InversionSettings = given.settings
    if settings.input_shape is not None:
        return tuple(settings.input_shape)
    if given.auxiliary is None:
        raise InputError(
            "input_shape",
            None,
            "it is not known, and the adversary has no records of its own to tell",
            "Set it, such as [3, 32, 32] for pictures or [30] for rows, or grant auxiliary-data.",
        )
    return given.auxiliary.input_shape


def _known_labels(given: AttackInput, first: Observed) -> NDArray[np.int64]:
    parts = []
    for client in first.behind:
        labels = None if given.labels is None else given.labels(first.round, client)
        if labels is None:
            raise InputError(
                "labels",
                f"round {first.round}, client {client}",
                "they are not recorded for this update",
                'Use labels = "inferred" or "joint".',
            )
        parts.append(labels)
    return np.concatenate(parts)

"""Gradient inversion of recorded updates: one run for all presets.

Each preset is an attack of its own (`inverting_gradients`, `second_order`, ...), with its recipe as
the defaults of its settings. The same search serves a client's update and a sum of updates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, create_model

from attacks.federated.rounds import SUM, Source
from attacks.reconstruction.adaptive import Defence, adapt
from attacks.reconstruction.feasibility import check_feasibility
from attacks.reconstruction.label_steps import LocalWork
from attacks.reconstruction.observed import (
    Observed,
    UpdateSettings,
    both_seats,
    observed,
    seat_notes,
)
from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.engine import Sight, invert_gradients
from attacks.reconstruction.optimisation.plan import LocalPlan
from attacks.reconstruction.optimisation.presets import PRESETS
from attacks.reconstruction.optimisation.result import Inversion
from attacks.reconstruction.optimisation.simulation import pseudo_gradient
from attacks.reconstruction.resimulation import pseudo_gradient_error
from fl_audit.attack_spec import AttackInput, AttackSpec, Reconstruction, Reconstructions
from fl_audit.errors import AuditError, InputError
from fl_audit.threat_model import NOTHING_KNOWN, Knowledge
from fl_audit.trace.query import load_weights

Values = NDArray[np.float64]


class InversionSettings(UpdateSettings, InversionConfig):
    """Which updates, and how to search; the defaults are the preset's."""

    most_updates: int | None = Field(default=8, ge=1)
    """Updates to invert, in the order of rounds and clients; each takes seconds to minutes."""
    max_batch: int = Field(default=16, ge=1)
    """Larger batches are left alone, and a note says so."""
    input_shape: list[int] | None = None
    """Of one input; by default that of the adversary's own auxiliary records."""
    mode: Literal["train", "eval"] = "train"
    """Mode of the client's model: clients train in training mode, which matters to BatchNorm and
    dropout only."""
    unroll: bool = False
    """Unroll the client's local steps; otherwise its update is read as one gradient."""
    epoch_prior: float = Field(default=0.1, ge=0)
    """With `unroll` and several epochs: weight of the distance between epochs' mean inputs."""
    orders: int = Field(default=24, ge=1)
    """With `unroll` and several steps: orders of labels to try; the client's is not known."""
    defence: Defence = "none"
    """The defence that the attack adapts to: "soteria", "precode", "pruning", "sign", "noise" or
    "clipping"."""
    join_rounds: bool = False
    """Search one batch for all of a client's rounds together: for clients that use the same data
    each round. It averages noise away."""
    hopeless_too: bool = False
    """Also search where the feasibility check says that it is hopeless."""

    @property
    def also_knows(self) -> Knowledge:
        """Known labels must be granted."""
        return Knowledge.LABELS if self.labels == "known" else NOTHING_KNOWN

    def config(self) -> InversionConfig:
        """The engine's part of the settings."""
        names = InversionConfig.model_fields
        return InversionConfig.model_validate({name: getattr(self, name) for name in names})


def preset_attack(
    name: str, *, reference: str, summary: str, **changes: Any
) -> tuple[AttackSpec, AttackSpec]:
    """A preset as an attack on updates, and as a `local_` one on sums.

    Args:
        changes: Defaults of settings that are not the engine's.
    """
    defaults = {**PRESETS[name], **changes}
    fields: dict[str, Any] = {
        key: (InversionSettings.model_fields[key].annotation, value)
        for key, value in defaults.items()
    }
    made: Any = create_model(
        f"{name.title().replace('_', '')}Settings",
        __base__=InversionSettings,
        __doc__=f"Settings of {name}: the defaults are its recipe.",
        **fields,
    )
    return both_seats(
        name,
        run_inversion,
        reference=reference,
        summary=summary,
        settings=cast("type[UpdateSettings]", made),
        knows=Knowledge.LOCAL_TRAINING,
    )


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
        work: Local steps, if there are several: labels allow for them.
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


Search = Callable[[AttackInput, Task], Inversion]


def run_inversion(given: AttackInput, source: Source) -> Reconstructions:
    """Invert the updates that the settings choose."""
    return invert_all(given, source, search)


def search(given: AttackInput, task: Task) -> Inversion:
    """The engine on one task."""
    settings: InversionSettings = given.settings
    proxies = None if given.auxiliary is None else given.auxiliary.inputs
    config = adapt(settings.config(), settings.defence, task.gradients[0])
    return invert_gradients(
        task.models[0],
        task.gradients[0],
        input_shape=task.input_shape,
        labels=task.labels,
        config=config,
        generator=torch.Generator().manual_seed(int(given.rng.integers(2**62))),
        batch_size=task.batch_size,
        proxies=proxies if proxies is not None and len(proxies) else None,
        plan=task.plan,
        work=task.work,
        more=[Sight(m, g) for m, g in zip(task.models[1:], task.gradients[1:], strict=True)],
        tick=None if given.tick is None else partial(given.tick, task.name),
    )


def invert_all(given: AttackInput, source: Source, search_one: Search) -> Reconstructions:
    """Search each chosen update, after a check of whether that can succeed at all."""
    settings: InversionSettings = given.settings
    claims: list[Reconstruction] = []
    notes = [*seat_notes(given.view, source, settings)]
    for seen in _groups(given, source):
        try:
            task = _task(given, seen)
            feasible = check_feasibility(
                task.models[0],
                task.gradients[0],
                input_shape=task.input_shape,
                batch_size=task.batch_size,
                labels_known=task.labels is not None,
                local=seen[0].local,
                rate=task.rate,
                received=seen[0].model,
            )
            notes += [f"{task.name}: {text}" for text in (*task.notes, *feasible.sentences())]
            if feasible.verdict == "hopeless" and not settings.hopeless_too:
                continue
            found = search_one(given, task)
        except AuditError as error:
            where = f"round {seen[0].round}, client {seen[0].client}"
            notes.append(f"{where}: no claim, {error}")
            continue
        notes += [f"{task.name}: {text}" for text in found.notes]
        claims.append(_claim(task, found))
    if not claims and notes:
        notes.append("No update was inverted.")
    return Reconstructions(tuple(claims), tuple(dict.fromkeys(notes)))


def _groups(given: AttackInput, source: Source) -> list[list[Observed]]:
    """Updates to search one batch for: each alone, or all of a client's rounds."""
    settings: InversionSettings = given.settings
    if not settings.join_rounds and settings.defence != "noise":
        return [[each] for each in observed(given, source)]
    groups: dict[int, list[Observed]] = {}
    for each in observed(given, source):
        groups.setdefault(each.client, []).append(each)
    return list(groups.values())


def _task(given: AttackInput, seen: Sequence[Observed]) -> Task:
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
    batch_size = None if first.num_examples is None else round(first.num_examples)
    if batch_size is not None and batch_size > settings.max_batch:
        raise InputError(
            "batch size",
            batch_size,
            f"is above max_batch = {settings.max_batch}",
            "Raise it; the search takes longer and finds less, the more records there are.",
        )
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
    gradients = [_gradient(each, parameters, is_unrolled=is_unrolled) for each in seen]
    shape = _input_shape(given)
    if local.algorithm != "fedsgd" and given.auxiliary is not None and batch_size is not None:
        error = pseudo_gradient_error(
            models[0], given.auxiliary, local, first.round, num_examples=batch_size, rng=given.rng
        )
        if error is not None:
            notes.append(
                f"re-simulated on auxiliary records, {local.steps(batch_size)} local steps read as "
                f"one gradient are off by {100 * error:.2g} % of its norm"
            )
    labels = None
    if settings.labels == "known":
        labels = _known_labels(given, first)
    work = None
    if batch_size is not None and local.steps(batch_size) > 1:
        each_client = max(1, round(batch_size / len(first.behind)))
        work = LocalWork(local, rate, each_client)
    return Task(seen, models, gradients, batch_size, labels, plan, work, shape, rate, tuple(notes))


def _gradient(
    each: Observed, parameters: Collection[str], *, is_unrolled: bool
) -> dict[str, Values]:
    """The gradient that an update stands for, and how buffers changed.

    Unrolled steps have weight decay of their own.
    """
    local = each.local
    assert local is not None  # checked by the caller
    rate = local.learning_rate_in(each.round)
    steps = 1 if local.algorithm == "fedsgd" else local.steps(round(each.num_examples or 1))
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
            "Set input_shape = [3, 32, 32], or grant auxiliary-data.",
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


def _claim(task: Task, found: Inversion) -> Reconstruction:
    first = task.seen[0]
    classes = int(found.labels.max(initial=0)) + 1
    return Reconstruction(
        first.round,
        first.client,
        inputs=found.inputs,
        labels=found.labels,
        label_counts=None
        if task.labels is not None
        else np.bincount(found.labels, minlength=classes),
        behind=first.behind if first.client == SUM else (),
        objective=found.history[:, found.best],
        frames=found.frames if len(found.frames) else None,
    )

"""Gradient inversion of recorded updates: one run for all presets.

Each preset is an attack of its own (`inverting_gradients`, `second_order`, ...), with its recipe as
the defaults of its settings. The same search serves a client's update and a sum of updates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from attacks.federated.rounds import SUM, Source
from attacks.reconstruction.adaptive import adapt
from attacks.reconstruction.feasibility import check_feasibility
from attacks.reconstruction.inversion_settings import InversionSettings, preset_settings
from attacks.reconstruction.inversion_tasks import Task, groups_of, task_of
from attacks.reconstruction.observed import both_seats, seat_notes
from attacks.reconstruction.optimisation.engine import Sight, invert_gradients
from attacks.reconstruction.optimisation.result import Inversion
from fl_audit.attack_spec import AttackInput, AttackSpec, Reconstruction, Reconstructions, Tried
from fl_audit.errors import AuditError
from fl_audit.threat_model import Knowledge


def preset_attack(
    name: str, *, reference: str, summary: str, **changes: Any
) -> tuple[AttackSpec, AttackSpec]:
    """A preset as an attack on updates, and as a `local_` one on sums.

    Args:
        changes: Defaults of settings that are not the engine's.
    """
    return both_seats(
        name,
        run_inversion,
        reference=reference,
        summary=summary,
        settings=preset_settings(name, **changes),
        knows=Knowledge.LOCAL_TRAINING,
    )


Search = Callable[[AttackInput, Task], Inversion]


def run_inversion(given: AttackInput, source: Source) -> Reconstructions:
    """Invert the updates that the settings choose."""
    return invert_all(given, source, search)


def search(given: AttackInput, task: Task) -> Inversion:
    """The engine on one task."""
    return invert_gradients(
        task.models[0],
        task.gradients[0],
        input_shape=task.input_shape,
        **engine_options(given, task),
    )


def engine_options(given: AttackInput, task: Task) -> dict[str, Any]:
    """What a task and the settings say to the engine, as keywords of `invert_gradients`."""
    settings: InversionSettings = given.settings
    proxies = None if given.auxiliary is None else given.auxiliary.inputs
    return {
        "labels": task.labels,
        "config": adapt(settings.config(), settings.defence, task.gradients[0]),
        "generator": torch.Generator().manual_seed(int(given.rng.integers(2**62))),
        "batch_size": task.batch_size,
        "proxies": proxies if proxies is not None and len(proxies) else None,
        "plan": task.plan,
        "work": task.work,
        "more": [Sight(m, g) for m, g in zip(task.models[1:], task.gradients[1:], strict=True)],
        "tick": None if given.tick is None else partial(given.tick, task.name),
    }


def invert_all(given: AttackInput, source: Source, search_one: Search) -> Reconstructions:
    """Search each chosen update, after a check of whether that can succeed at all."""
    settings: InversionSettings = given.settings
    claims: list[Reconstruction] = []
    tried: list[Tried] = []
    failed, num_hopeless = list[AuditError](), 0
    notes = [*seat_notes(given.view, source, settings)]
    for seen in groups_of(given, source):
        try:
            task = task_of(given, seen)
            feasible = check_feasibility(
                task.models[0],
                task.gradients[0],
                input_shape=task.input_shape,
                batch_size=task.batch_size,
                labels_known=task.labels is not None,
                local=seen[0].local,
                rate=task.rate,
                received=seen[0].model,
                clients=len(seen[0].behind),
            )
            notes += [f"{task.name}: {text}" for text in (*task.notes, *feasible.sentences())]
            if feasible.verdict == "hopeless" and not settings.hopeless_too:
                num_hopeless += 1
                continue
            tried.append(seen[0].tried)
            found = search_one(given, task)
        except AuditError as error:
            failed.append(error)
            where = f"round {seen[0].round}, client {seen[0].client}"
            notes.append(f"{where}: no claim, {error}")
            continue
        notes += [f"{task.name}: {text}" for text in found.notes]
        claims.append(_claim(task, found))
    if not claims and failed and not num_hopeless:
        raise failed[0]  # a setting, or what is not granted: the same for every update
    return Reconstructions(tuple(claims), tuple(dict.fromkeys(notes)), tried=tuple(tried))


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

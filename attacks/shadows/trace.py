"""Laboratories for attacks on the final model of a recorded federation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from attacks.shadows.lab import Lab, Workshop
from attacks.shadows.store import Store
from attacks.shadows.target import Target, Task, module_target
from attacks.shadows.trainers import Trainer
from attacks.shadows.training import factory_builder
from fl_audit.game import MembershipGame
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView
from fl_audit.trace.query import load_weights


def view_labs(
    view: TraceView,
    game: MembershipGame,
    *,
    trainer: Trainer | None,
    seed: int,
    device: str,
    store: Store | None,
    train_size: int | None,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Lab]:
    """A laboratory for the candidates and one for the null, as far as the threat model grants.

    Without logits and auxiliary records there is still a target to ask; what is not granted is
    refused by the attack's own declaration before this.
    """
    sees = view.threat_model
    if sees.missing(Observation.LABELS_ONLY):
        return {}
    has_weights = not sees.missing(Observation.FINAL_MODEL)
    if has_weights:
        module = view.architecture()
        load_weights(module, view.final_model())
        target = module_target(module, device=device)
    else:
        target = Target(lambda inputs: view.query(inputs, device=device), key="the run's model")
    knows_auxiliary = Knowledge.AUXILIARY_DATA in sees.knows
    auxiliary = game.auxiliary if knows_auxiliary else game.auxiliary.take([])
    pool = Records.concatenate([game.candidates, game.null, auxiliary])
    num_audited = len(game.candidates) + len(game.null)
    workshop = Workshop(
        pool,
        num_audited,
        Task("classification", game.num_classes),
        trainer=trainer,
        build=factory_builder(view.architecture) if has_weights else None,
        train_size=train_size or len(game.candidates) // 2,
        seed=seed,
        store=store,
        device=device,
        progress=progress,
    )
    population = np.arange(num_audited, len(pool))
    ends = len(game.candidates), num_audited
    return {
        "candidates": Lab(workshop, target, np.arange(ends[0]), population),
        "null": Lab(workshop, target, np.arange(ends[0], ends[1]), population),
    }

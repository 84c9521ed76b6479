"""Laboratories for attacks on the final model of a recorded federation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from attacks.shadows.lab import Lab
from attacks.shadows.store import Store
from attacks.shadows.target import Target, Task, module_target
from attacks.shadows.trainers import DefaultTrainer, Trainer
from attacks.shadows.training import TrainingConfig, factory_builder
from attacks.shadows.workshop import Workshop
from fl_audit.game import NATURAL, GameTruth, MembershipGame
from fl_audit.local_training import LocalTraining
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView
from fl_audit.trace.query import load_weights

_LEAST_NULL = 60
_NULL_OF_CANDIDATES = 0.2


def central_trainer(
    build: Callable[[], Any], local: LocalTraining, rounds: int, *, device: str = "cpu"
) -> DefaultTrainer:
    """Trains at one place, on all records, as long as clients do in all rounds together."""
    epochs = rounds * (1 if local.algorithm == "fedsgd" else local.local_epochs)
    config = TrainingConfig(
        optimizer="sgd",
        learning_rate=local.learning_rate,
        momentum=local.momentum,
        weight_decay=local.weight_decay,
        epochs=epochs,
        batch_size=local.batch_size,
    )
    origin = "training at one place instead of in a federation"
    return DefaultTrainer(factory_builder(build), config, device=device, origin=origin)


def with_small_null(
    game: MembershipGame, truth: GameTruth | None
) -> tuple[MembershipGame, GameTruth | None]:
    """The game with a null control small enough for attacks with shadow models.

    Shadow models are trained on half of all audited records, so a null as large as the candidates
    would make them twice as large as the target. Whole groups are kept.
    """
    size = (game.rules.non_members_per_member + 1) * game.rules.fresh_per_user
    wanted = max(_LEAST_NULL, int(_NULL_OF_CANDIDATES * len(game.candidates)))
    kept = min(len(game.null), -(-wanted // size) * size)
    rows = np.arange(len(game.null))
    if game.null_kinds is None:
        rows = rows[:kept]
    else:  # natural ones as said, and what there is of the canaries' few
        is_natural = game.null_kinds == NATURAL
        rows = rows[~is_natural | (np.cumsum(is_natural) <= kept)]
    small = replace(
        game,
        null=game.null.take(rows),
        null_asked=None if game.null_asked is None else game.null_asked[rows],
        null_kinds=None if game.null_kinds is None else game.null_kinds[rows],
        null_users=None if game.null_users is None else game.null_users[rows],
    )
    if truth is None:
        return small, None
    return small, replace(truth, null_is_member=truth.null_is_member[rows])


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

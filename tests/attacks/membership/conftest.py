"""Shared targets for attacks on a model: trained once a session."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from attacks.shadows.lab import Lab
from attacks.shadows.target import Task, module_target
from attacks.shadows.trainers import DefaultTrainer
from attacks.shadows.training import Job, TrainingConfig, fresh_builder, train_one
from attacks.shadows.workshop import Workshop
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge
from fl_audit.trace import TraceView

AUDITED, AUXILIARY = 300, 900
CONFIG = TrainingConfig(epochs=60, batch_size=32, learning_rate=1e-2)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


@dataclass(frozen=True)
class ModelTask:
    """An over-fitted target; candidates of which half were trained on, and as many never seen."""

    candidates: Lab
    null: Lab
    is_member: NDArray[np.bool_]

    def run(
        self, spec: AttackSpec, part: str = "candidates", **settings: Any
    ) -> tuple[NDArray[np.bool_], MembershipScores]:
        """(is_member, scores) of an attack; records whose membership it is granted are left out.

        Null candidates have lots too, and none was trained on.
        """
        lab: Lab = getattr(self, part)
        rng = np.random.default_rng(1)
        known = None
        scored = np.ones(len(lab.rows), dtype=np.bool_)
        if Knowledge.KNOWN_MEMBERS in spec.knows:
            rows = np.sort(rng.permutation(len(lab.rows))[: len(lab.rows) // 2])
            known = (rows, self.is_member[rows])
            scored[rows] = False
        view: TraceView = None  # type: ignore[assignment]  # an attack on a model looks at none
        given = AttackInput(
            view=view,
            settings=spec.settings(**settings),
            rng=rng,
            candidates=lab.candidates,
            lab=lab,
            known=known,
        )
        output = spec.run(given)
        assert isinstance(output, MembershipScores)
        assert output.scores.dtype == np.float64
        assert np.isfinite(output.scores).all()
        return self.is_member[scored], replace(output, scores=output.scores[scored])


def make_task(*, random_labels: bool, seed: int = 0) -> ModelTask:
    inputs, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(inputs))[: 2 * AUDITED + AUXILIARY]
    inputs = (inputs[order] / 16).astype(np.float32)
    labels = labels[order].astype(np.int64)
    if random_labels:
        labels = rng.integers(10, size=len(labels))
    pool = Records(order, inputs, labels)
    is_member = rng.permutation(np.arange(AUDITED) < AUDITED // 2)
    build = fresh_builder(mlp())
    members = pool.take(np.flatnonzero(is_member))
    target = module_target(train_one(build, Job(members, 7), CONFIG))
    workshop = Workshop(
        pool,
        2 * AUDITED,
        Task("classification", 10),
        trainer=DefaultTrainer(build, CONFIG),
        build=build,
        train_size=AUDITED,
        seed=seed,
    )
    population = np.arange(2 * AUDITED, len(pool))
    return ModelTask(
        Lab(workshop, target, np.arange(AUDITED), population),
        Lab(workshop, target, np.arange(AUDITED, 2 * AUDITED), population),
        is_member,
    )


@pytest.fixture(scope="session")
def overfitted() -> ModelTask:
    """The digits MLP of the standard protocol: 300 records, half of them trained on."""
    return make_task(random_labels=False)


@pytest.fixture(scope="session")
def memorised() -> ModelTask:
    """The same with random labels: what was trained on stands out clearly."""
    return make_task(random_labels=True)

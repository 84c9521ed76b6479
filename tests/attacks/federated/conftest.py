"""Hand-made traces: updates of which everything is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fl_audit.factories import ModelSpec
from fl_audit.files import Arrays
from fl_audit.local_training import LocalTraining, LocalTrainings
from fl_audit.records import Records
from fl_audit.threat_model import PRESETS, ThreatModel
from fl_audit.trace import Reply, Trace, TraceView, TraceWriter

SPEC = ModelSpec(
    factory="simulations.models:mlp",
    settings={"input_shape": [6], "num_classes": 3, "hidden": [20]},
)
RATE = 0.5


def _records(n: int, *, rng: np.random.Generator) -> Records:
    inputs = rng.random((n, 6)).astype(np.float32)
    return Records(np.arange(n), inputs, rng.integers(3, size=n))


def _weights(*, rng: np.random.Generator) -> Arrays:
    module = SPEC.builder(trusted=False)()
    return {
        name: rng.normal(0, 0.5, tuple(value.shape)).astype(np.float32)
        for name, value in module.state_dict().items()
    }


def _gradient(model: Arrays, data: Records, rows: Sequence[int]) -> Arrays:
    """The gradient of the mean cross-entropy of some records by plain autograd: the oracle."""
    module = SPEC.builder(trusted=False)()
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in model.items()})
    chosen = data.take(list(rows))
    loss = torch.nn.functional.cross_entropy(
        module(torch.from_numpy(chosen.inputs)), torch.from_numpy(chosen.labels)
    )
    names = [name for name, _ in module.named_parameters()]
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    return {name: g.numpy() for name, g in zip(names, gradients, strict=True)}


def _step(model: Arrays, gradient: Arrays, rate: float = RATE) -> Arrays:
    return {name: (model[name] - rate * gradient[name]).astype(np.float32) for name in model}


def _view(
    folder: Path,
    rounds: Sequence[tuple[Arrays, dict[int, Arrays | None], Arrays | None]],
    threat_model: ThreatModel = PRESETS["curious-server"],
    *,
    counts: dict[int, int] | None = None,
    training: LocalTraining | None = None,
) -> TraceView:
    """A view of rounds (model, replies by client (None: it failed), next model or None)."""
    writer = TraceWriter(folder)
    for number, (model, replies, after) in enumerate(rounds, start=1):
        writer.begin_round(number, model, list(replies))
        writer.add_replies(
            number,
            [
                Reply(client, None, error_code=1, error_reason="it failed")
                if arrays is None
                else Reply(client, arrays, {"num-examples": (counts or {}).get(client, 10)})
                for client, arrays in replies.items()
            ],
        )
        writer.end_round(number, after, {})
    writer.close()
    local = training or LocalTraining(algorithm="fedsgd", learning_rate=RATE)
    return TraceView(
        Trace.open(folder),
        threat_model,
        model=SPEC.builder(trusted=False),
        local_training=LocalTrainings(default=local),
    )


def _two_rounds() -> tuple[Records, list[tuple[Arrays, dict[int, Arrays | None], Arrays | None]]]:
    """Five records; two clients in round 1, one of them in round 2."""
    rng = np.random.default_rng(20_261_125)
    data = _records(5, rng=rng)
    models = [_weights(rng=rng) for _ in range(5)]
    first: dict[int, Arrays | None] = {0: models[1], 1: models[2]}
    return data, [(models[0], first, models[3]), (models[3], {1: models[4]}, models[4])]


@pytest.fixture(autouse=True)
def torchs_own_generator() -> Iterator[None]:
    """As it was after each test: some seed it to build a model."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="session")
def hand() -> Any:
    """Pieces of a hand-made trace: records, weights, gradient, step, view."""
    return SimpleNamespace(
        spec=SPEC,
        rate=RATE,
        records=_records,
        weights=_weights,
        gradient=_gradient,
        step=_step,
        view=_view,
        two_rounds=_two_rounds,
    )


@pytest.fixture(scope="session")
def small_federation(run_tables: Any) -> Path:
    """Three clients with 20 records, memorised in three rounds."""
    out: Path = run_tables(
        "small",
        federation={"clients": 3, "rounds": 3},
        data={"examples_per_client": 20, "random_labels": True},
        game={"members": 60, "auxiliary": 60},
        training={"local_epochs": 20},
    )
    return out

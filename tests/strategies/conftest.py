"""A tiny federation on the in-process engine, written as any Flower user would."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

from simulations.engines.local import run_local

ClientFunction = Callable[[Message, Context], dict[str, np.ndarray] | RecordDict]
NUM_CLIENTS = 7


def reply_content(
    arrays: dict[str, np.ndarray], num_examples: float, loss: float = 1.0
) -> RecordDict:
    """What an honest client sends."""
    metrics = MetricRecord({"num-examples": num_examples, "train_loss": loss})
    return RecordDict(
        {"arrays": ArrayRecord({k: Array(v) for k, v in arrays.items()}), "metrics": metrics}
    )


def initial() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"w": rng.normal(size=(4, 3)).astype(np.float32), "b": np.zeros(4, dtype=np.float32)}


def honest(message: Message, context: Context) -> dict[str, np.ndarray]:
    """A step that depends on the model, the round and the client: any change would show."""
    arrays = {k: v.numpy() for k, v in message.content.array_records["arrays"].items()}
    server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
    rng = np.random.default_rng([int(context.node_config["partition-id"]), server_round])
    return {
        k: (0.9 * v + rng.normal(0, 0.1, v.shape)).astype(np.float32) for k, v in arrays.items()
    }


def client_app(
    function: ClientFunction = honest, mods: list[Callable[..., Message]] | None = None
) -> ClientApp:
    app = ClientApp()

    @app.train(mods=mods)  # type: ignore[arg-type]
    def train(message: Message, context: Context) -> Message:
        found = function(message, context)
        if isinstance(found, RecordDict):  # a client that makes its own content
            return Message(found, reply_to=message)
        partition = int(context.node_config["partition-id"])
        return Message(reply_content(found, 10 + partition, 1.0 + partition), reply_to=message)

    return app


@pytest.fixture(autouse=True, scope="session")
def _quick_collections() -> None:
    """Some of Flower's strategies collect garbage every round: leave imported modules out of it."""
    gc.freeze()


Federate = Callable[..., Result]


@pytest.fixture
def federate() -> Federate:
    """Run `rounds` rounds of a strategy against a client function; return Flower's result."""

    def run(
        strategy: Strategy,
        function: ClientFunction = honest,
        *,
        rounds: int = 3,
        mods: list[Callable[..., Message]] | None = None,
        wrap: Callable[[Grid], Grid] = lambda grid: grid,
    ) -> Result:
        results: list[Result] = []
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            arrays = ArrayRecord({k: Array(v) for k, v in initial().items()})
            results.append(strategy.start(wrap(grid), arrays, num_rounds=rounds))

        run_local(app, client_app(function, mods), num_clients=NUM_CLIENTS, run_config={}, seed=1)
        return results[0]

    return run


@pytest.fixture
def sha256() -> Callable[[Result], str]:
    """sha256 over the final arrays of a result."""

    def digest(result: Result) -> str:
        state = hashlib.sha256()
        for name, array in sorted(result.arrays.items()):
            state.update(name.encode() + array.numpy().tobytes())
        return state.hexdigest()

    return digest

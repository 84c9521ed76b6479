"""The local engine: ordered, isolated, and repeatable."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from simulations.engines.local import run_local
from strategies.identify import answer_identify, identify_nodes, wait_for_nodes


def run(client: ClientApp, main: Callable[[Grid], Any], *, clients: int = 4, seed: int = 0) -> Any:
    found: list[Any] = []
    app = ServerApp()

    @app.main()
    def server(grid: Grid, context: Context) -> None:
        found.append(main(grid))

    run_local(app, client, num_clients=clients, run_config={"key": "value"}, seed=seed)
    return found[0]


def ask(grid: Grid, kind: str = "train") -> list[Message]:
    content = RecordDict({"arrays": ArrayRecord({})})  # one record for all, as Flower's FedAvg does
    messages = [Message(content, n, kind) for n in grid.get_node_ids()]
    return list(grid.send_and_receive(messages))


def counting_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        calls = int(context.state.metric_records["calls"]["n"]) if context.state else 0  # type: ignore[arg-type]
        context.state["calls"] = MetricRecord({"n": calls + 1})
        message.content["mine"] = MetricRecord({"n": 1})  # must not reach the next client
        seen = len(message.content.metric_records)
        metrics = MetricRecord(
            {
                "calls": calls + 1,
                "partition": int(context.node_config["partition-id"]),
                "seen": seen,
                "threads": torch.get_num_threads(),
            }
        )
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def values(messages: list[Message], name: str) -> list[Any]:
    return [m.content.metric_records["metrics"][name] for m in messages]


def test_replies_come_in_order_and_state_persists() -> None:
    first, second = run(counting_app(), lambda grid: (ask(grid), ask(grid)))
    assert values(first, "partition") == [0, 1, 2, 3]
    assert values(first, "calls") == [1, 1, 1, 1]
    assert values(second, "calls") == [2, 2, 2, 2]


def test_contents_are_copied_as_a_transport_would() -> None:
    assert values(run(counting_app(), ask), "seen") == [1, 1, 1, 1]


def test_client_calls_use_one_thread_and_globals_are_restored() -> None:
    torch_threads = torch.get_num_threads()
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]  # noqa: NPY002
    torch_state = torch.random.get_rng_state()
    assert values(run(counting_app(), ask), "threads") == [1, 1, 1, 1]
    assert (torch.random.get_rng_state() == torch_state).all()
    assert torch.get_num_threads() == torch_threads
    assert random.getstate() == python_state
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[union-attr]  # noqa: NPY002


def test_globals_are_seeded_inside() -> None:
    def draw(_: Grid) -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    assert run(counting_app(), draw, seed=3) == run(counting_app(), draw, seed=3)
    assert run(counting_app(), draw, seed=3) != run(counting_app(), draw, seed=4)


def drawing_app() -> ClientApp:
    """Draws from every generator of the process, as mods and dropout do."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        drawn = [random.random(), float(np.random.random()), float(torch.rand(()))]  # noqa: NPY002
        return Message(RecordDict({"metrics": MetricRecord({"drawn": drawn})}), reply_to=message)

    return app


def test_what_a_client_draws_depends_on_seed_and_client_only() -> None:
    """Not on what else was drawn in this process, and not on the order of calls."""

    def after_others(grid: Grid) -> list[Message]:
        random.random(), np.random.random(7), torch.rand(7)  # noqa: NPY002
        messages = [Message(RecordDict(), n, "train") for n in reversed(list(grid.get_node_ids()))]
        for message in messages[:3]:
            grid.send_and_receive([message])
        return ask(grid)

    first = values(run(drawing_app(), ask), "drawn")
    assert values(run(drawing_app(), after_others), "drawn") == first
    assert len({number for drawn in first for number in drawn}) == 12
    other = values(run(drawing_app(), ask, seed=1), "drawn")
    assert not {n for drawn in first for n in drawn} & {n for drawn in other for n in drawn}


def test_a_client_that_raises_becomes_an_error_reply() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise RuntimeError("out of battery")

    replies = run(app, ask)
    assert all(reply.has_error() for reply in replies)
    assert "out of battery" in (replies[0].error.reason or "")


def test_ctrl_c_in_a_client_passes_through() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(app, ask)


def test_nodes_are_identified_by_their_partition() -> None:
    app = ClientApp()
    answer_identify(app)
    found = run(app, lambda grid: identify_nodes(grid, wait_for_nodes(grid, 4)))
    assert sorted(found.values()) == [0, 1, 2, 3]


def test_waiting_for_nodes_that_never_come_says_so() -> None:
    from fl_audit.errors import InputError

    with pytest.raises(InputError, match="only 4 nodes came"):
        run(counting_app(), lambda grid: wait_for_nodes(grid, 5, timeout=0))

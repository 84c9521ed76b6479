"""The `local` engine: Flower apps in this process, in order, repeatable bit for bit.

Every private name of Flower that fl-audit touches is in this file.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode  # private
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run  # private
from flwr.supercore.task_identity import TaskIdentity  # private: Message() fails without it

from simulations.engines.calls import RepeatableClientApp, RunConfig
from simulations.global_generators import seeded_globals

_RUN_ID = 1
_SERVER_NODE_ID = 1 << 60
_FIRST_NODE_ID = 1


def run_local(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    num_clients: int,
    run_config: RunConfig,
    seed: int,
) -> None:
    """Run a server app against `num_clients` copies of a client app, in this process.

    Flower's strategies and mods, and dropout, draw from the process's own generators: they are
    seeded here and restored afterwards. Client calls use one torch thread. Exceptions of the server
    app, and Ctrl-C, pass through.
    """
    with _isolated(seed):
        grid = LocalGrid(client_app, num_clients, run_config, seed=seed)
        context = _context(_SERVER_NODE_ID, {}, run_config)
        server_app(grid, context)


class LocalGrid(Grid):
    """A Grid whose nodes are calls in this process.

    Calls are made, and replies returned, in the order of partition ids. Contents are copied on the
    way in and out, as a transport would: Flower's strategies put one record into every message.
    """

    def __init__(
        self, client_app: ClientApp, num_clients: int, run_config: RunConfig, *, seed: int
    ) -> None:
        self._app = RepeatableClientApp(client_app, run_config=run_config, seed=seed)
        self._run = Run.create_empty(run_id=_RUN_ID)
        self._num_messages = 0
        self._replies: dict[str, Message] = {}
        self._contexts = {  # one a node, kept: its state persists over rounds
            _FIRST_NODE_ID + partition: _context(
                _FIRST_NODE_ID + partition,
                {"partition-id": partition, "num-partitions": num_clients},
                run_config,
            )
            for partition in range(num_clients)
        }

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message as older server apps make it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes, ordered by partition id."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver each message at once; its reply waits to be pulled."""
        return [self._deliver(m) for m in sorted(messages, key=lambda m: m.metadata.dst_node_id)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these messages, in the order of partition ids."""
        replies = [self._replies.pop(i) for i in list(message_ids) if i in self._replies]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver messages and return their replies, in order; nothing can time out."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        self._num_messages += 1
        message_id = str(uuid.UUID(int=self._num_messages))
        message.metadata.__dict__["_message_id"] = message_id  # private
        delivered = _private_message(deepcopy(message.content), message.metadata)
        context = self._contexts[message.metadata.dst_node_id]
        try:
            reply = self._app(delivered, context)
        except Exception as error:  # noqa: BLE001 — any client failure becomes an error reply
            reason = f"{type(error).__name__}: {error}"
            reply = Message(
                Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
            )
        self._replies[message_id] = reply
        return message_id


def _private_message(content: RecordDict, metadata: Metadata) -> Message:
    """A message that arrives: the constructor takes metadata, its public overloads do not say."""
    build: Any = Message
    return cast(Message, build(content, metadata=metadata))


def _context(node_id: int, node_config: dict[str, int], run_config: RunConfig) -> Context:
    return Context(
        run_id=_RUN_ID,
        node_id=node_id,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config=dict(run_config),
    )


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Seed and, afterwards, restore everything global that a run touches."""
    threads = torch.get_num_threads()
    identity = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    torch.set_num_threads(1)
    TaskIdentity.task_id = TaskIdentity.run_id = _RUN_ID
    TaskIdentity.node_id = _SERVER_NODE_ID
    try:
        with seeded_globals(seed):
            yield
    finally:
        torch.set_num_threads(threads)
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = identity

"""The malicious server: it runs the federation, and sends some clients another model."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from attacks.federated.active import add_update, same_shapes
from attacks.federated.server_behaviours import (
    SERVER_BEHAVIOURS,
    ServerBehaviour,
    ServerMeans,
    ServerTurn,
)
from attacks.reconstruction.server_behaviours import PLANTINGS
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from strategies.delegating import DelegatingStrategy
from strategies.messages import arrays_of, main_key

SERVER = SERVER_BEHAVIOURS | PLANTINGS
"""What a malicious server does: name -> its settings class."""


class MaliciousStrategy(DelegatingStrategy):
    """Wrap any Flower strategy; alter what victims receive, and what becomes of their replies.

    Everything else is `inner`'s. A client that was not sampled, failed, or sent NaN or another
    shape is met again where it was left: isolation keeps its last usable model, and targets whose
    turn it was come again. Record what goes on with `CuriousStrategy(MaliciousStrategy(inner))`.

    Args:
        inner: The strategy that the federation believes in.
        behaviour: What is done; its `victims` are partition ids where known.
        means: What the server has.
        clients: Node id -> partition id, where known. Other nodes go by node id.

    Raises:
        InputError: If `inner` drives its own rounds, or the behaviour lacks something.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        behaviour: ServerBehaviour,
        means: ServerMeans,
        clients: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(inner)
        behaviour.check(means)
        self.behaviour = behaviour
        self._means = means
        self._clients = dict(clients or {})
        self._global: Arrays = {}
        self._sent: dict[int, Arrays] = {}  # this round, to clients that got another model
        self._last: dict[int, Arrays] = {}  # each client's last usable model
        self._answers: dict[int, int] = {}  # and how many of them there were

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, then give each victim a model of its own."""
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        self._global, self._sent = arrays_of(arrays), {}
        records: dict[Hashable, tuple[Arrays, ArrayRecord]] = {}  # clients may share a model
        for message in messages:
            client = self._client(message.metadata.dst_node_id)
            key = main_key(message.content) if message.has_content() else None
            if key is None or not self._is_victim(client):
                continue
            turn = ServerTurn(
                server_round,
                client,
                self._global,
                self._last.get(client),
                self._answers.get(client, 0),
            )
            which = self.behaviour.key(turn, self._means)
            if which not in records:
                model = self._checked(self.behaviour.send(turn, self._means), turn)
                records[which] = model, to_record(model)
            model, record = records[which]
            if model is self._global:
                continue
            self._sent[client] = model
            content = RecordDict(dict(message.content.items()))  # messages share theirs
            content[key] = record
            message.content = content
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Remember what came, merge it as the behaviour says, and delegate."""
        merged = []
        for reply in replies:
            client = self._client(reply.metadata.src_node_id)
            model = self._usable(reply)
            if model is not None:
                self._last[client] = model
                self._answers[client] = self._answers.get(client, 0) + 1
            if client in self._sent and self.behaviour.merge == "leave-out":
                continue
            if client in self._sent and model is not None and self.behaviour.merge == "update":
                key = main_key(reply.content)
                assert key is not None  # else it were not usable
                honest = add_update(self._global, self._sent[client], model)
                reply.content[key] = to_record(honest)
            merged.append(reply)
        return self.inner.aggregate_train(server_round, merged)

    def _is_victim(self, client: int) -> bool:
        return self.behaviour.victims is None or client in self.behaviour.victims

    def _checked(self, model: Arrays, turn: ServerTurn) -> Arrays:
        """A model that clients can load, or an error that names the behaviour."""
        if model is self._global:
            return model
        same = same_shapes(model, self._global)
        if not same or not all(_is_finite(array) for array in model.values()):
            raise InputError(
                f"model for client {turn.client} in round {turn.server_round}",
                {name: array.shape for name, array in model.items()},
                "it must have the global model's names and shapes, and finite values"
                if not same
                else "it holds NaN or infinite values",
                f"Change what {type(self.behaviour).__name__} sends.",
            )
        return {
            name: np.asarray(model[name]).astype(array.dtype, copy=False)
            for name, array in self._global.items()
        }

    def _usable(self, reply: Message) -> Arrays | None:
        """The model in a reply, if it fits and is finite."""
        if not reply.has_content():
            return None
        key = main_key(reply.content)
        if key is None:
            return None
        try:
            model = arrays_of(reply.content.array_records[key])
        except (ValueError, TypeError, EOFError, OSError):  # cannot be decoded
            return None
        fits = same_shapes(model, self._global)
        return model if fits and all(_is_finite(array) for array in model.values()) else None

    def _client(self, node_id: int) -> int:
        return self._clients.get(node_id, node_id)


def to_record(arrays: Arrays) -> ArrayRecord:
    """Plain arrays as a Flower record."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def _is_finite(array: np.ndarray[Any, np.dtype[Any]]) -> bool:
    return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())

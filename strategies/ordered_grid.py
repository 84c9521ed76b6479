"""A Grid that lists nodes and hands over replies by partition id, whatever the transport does.

Node ids are random and replies arrive as they please, so a federation is repeatable only if both
are put in order before a strategy sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class OrderedGrid(Grid):
    """Wrap a grid; order by `rank`.

    Args:
        inner: The grid that carries messages.
        rank: Node id -> partition id. A node without one comes last, by its node id.
    """

    def __init__(self, inner: Grid, rank: Mapping[int, int]) -> None:
        self.inner = inner
        self._rank = dict(rank)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids in the order of their partition ids."""
        return sorted(self.inner.get_node_ids(), key=self._place)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there, in order."""
        return self._ordered(self.inner.pull_messages(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Replies in order."""
        return self._ordered(self.inner.send_and_receive(messages, timeout=timeout))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delegate."""
        return self.inner.push_messages(messages)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Delegate."""
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def set_run(self, run: Any) -> None:
        """Delegate."""
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        """Delegate."""
        return self.inner.run

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet: do not ask for it in a circle
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _ordered(self, replies: Iterable[Message]) -> list[Message]:
        return sorted(replies, key=lambda reply: self._place(reply.metadata.src_node_id))

    def _place(self, node_id: int) -> tuple[float, int]:
        return (self._rank.get(node_id, float("inf")), node_id)

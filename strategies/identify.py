"""Which node is which partition: asked of the client side, where ground truth exists.

A server cannot see partition ids, and node ids are random. A client app that answers this query
lets a simulation key its trace by partition, so that traces of two engines can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fl_audit.errors import InputError, clean_text

_ACTION = "fl_audit_identify"
_TYPE = f"{MessageType.QUERY}.{_ACTION}"


def answer_identify(app: ClientApp) -> None:
    """Make a client app answer the identify query with its partition id."""

    @app.query(_ACTION)
    def identify(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        content = RecordDict({"identity": MetricRecord({"partition-id": partition})})
        return Message(content=content, reply_to=message)


def wait_for_nodes(
    grid: Grid,
    expected: int,
    *,
    timeout: float = 120.0,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Node ids, once `expected` nodes are there: a server app starts before they register.

    Raises:
        InputError: If they are not there within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < expected:
        if time.monotonic() > deadline:
            raise InputError(
                "federation.clients",
                expected,
                f"only {len(nodes)} nodes came within {timeout:.0f} s",
                "Start the missing nodes, or lower federation.clients.",
            )
        sleep(0.1)
    return nodes


def identify_nodes(grid: Grid, nodes: list[int]) -> dict[int, int]:
    """Node id -> partition id of every node.

    Raises:
        InputError: If a node does not answer, or fails to.
    """
    messages = [
        Message(content=RecordDict(), message_type=_TYPE, dst_node_id=node) for node in nodes
    ]
    replies = list(grid.send_and_receive(messages, timeout=120))
    found = {
        reply.metadata.src_node_id: int(
            reply.content.metric_records["identity"]["partition-id"]  # type: ignore[arg-type]
        )
        for reply in replies
        if reply.has_content()
    }
    missing = sorted(set(nodes) - set(found))
    if missing:
        reasons = {str(reply.error.reason) for reply in replies if reply.has_error()}
        raise InputError(
            "nodes",
            missing,
            f"did not say which partition they are ({clean_text('; '.join(sorted(reasons)), 300)})",
            "Wrap the client app so that it answers (strategies.identify.answer_identify).",
        )
    return found

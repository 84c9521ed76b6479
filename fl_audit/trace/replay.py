"""Replaying an interrupted run: each recorded round must come out the same again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fl_audit.errors import TraceError
from fl_audit.trace.index import ArraysEntry, RoundIndex, SentEntry, TensorEntry
from fl_audit.trace.reply import Reply, describe, is_storable, num_examples

Part = Literal["broadcast", "aggregate"]


class ReplayError(TraceError):
    """A replayed round differs from what was recorded. Stops the run: what is there is kept."""


def check_replay(recorded: RoundIndex | None, part: Part, found: ArraysEntry) -> None:
    """Compare a model of a replayed round with what was recorded of it, as far as it got.

    Raises:
        ReplayError: Naming the round, the part and the first difference.
    """
    if recorded is None:
        return
    entry = recorded.broadcast if part == "broadcast" else recorded.aggregate
    if entry is None and (part == "broadcast" or recorded.state != "aggregated"):
        return
    difference = _difference(None if entry is None else entry.tensors, found.tensors)
    if difference is not None:
        raise _differs(recorded.round, part, difference)


def check_sent(recorded: RoundIndex | None, found: Sequence[SentEntry]) -> None:
    """Compare models of single clients in a replayed round with what was recorded of them.

    Raises:
        ReplayError: Naming the round, the client and the first difference.
    """
    if recorded is None or recorded.broadcast is None:
        return
    clients = sorted({s.client for s in recorded.sent} ^ {s.client for s in found})
    if clients:
        raise _differs(recorded.round, "models of single clients", f"clients {clients}")
    for entry in found:
        old = recorded.sent_to(entry.client)
        before = None if old is None else old.arrays.tensors
        difference = _difference(before, entry.arrays.tensors)
        if difference is not None:
            raise _differs(recorded.round, f"model sent to client {entry.client}", difference)


def check_replies(recorded: RoundIndex | None, replies: Sequence[Reply]) -> None:
    """Before replies that were recorded are written again, compare them with what is there.

    Raises:
        ReplayError: Naming the round, the client and the first difference.
    """
    if recorded is None or recorded.state == "sent":
        return
    before = {reply.client: reply for reply in recorded.replies}
    if before.keys() != {reply.client for reply in replies}:
        clients = sorted(before.keys() ^ {reply.client for reply in replies})
        raise _differs(recorded.round, "replies", f"clients {clients} are in one of them only")
    for reply in replies:
        old = before[reply.client]
        if old.num_examples != num_examples(reply):
            raise _differs(recorded.round, "replies", f"num-examples of client {reply.client}")
        if old.arrays is not None:
            came = reply.arrays is not None and is_storable(reply.arrays)
            now = describe(reply.arrays or {}) if came else None
            difference = _difference(old.arrays.tensors, now)
            if difference is not None:
                raise _differs(recorded.round, f"reply of client {reply.client}", difference)


def _difference(
    before: dict[str, TensorEntry] | None, now: dict[str, TensorEntry] | None
) -> str | None:
    """The first array that differs. A digest that was never computed differs from none."""
    if before is None or now is None:
        return None if before is now else "there are arrays in one of them only"
    for name in [*before, *now]:
        old, new = before.get(name), now.get(name)
        if old is None or new is None or (old.dtype, old.shape) != (new.dtype, new.shape):
            return f"array {name!r}"
        if old.sha256 is not None and new.sha256 is not None and old.sha256 != new.sha256:
            return f"array {name!r}"
    return None


def _differs(server_round: int, part: str, what: str) -> ReplayError:
    return ReplayError(
        f"round {server_round}, {part}",
        what,
        "the replay differs from what was recorded",
        "The code, the data, a library or the machine has changed since. What was recorded is "
        "kept: report it as it is, or run anew in another directory.",
    )

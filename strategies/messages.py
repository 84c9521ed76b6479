"""Flower messages as plain data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from fl_audit.files import Arrays
from fl_audit.trace import Reply

_MAIN = "arrays"  # Flower's key for the model in a message
_STORABLE = frozenset("biuf")  # numpy kinds that safetensors can hold
_UNREADABLE = -1  # error code of ours: the reply came, but its arrays cannot be decoded


def arrays_of(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    """Copies of a record's arrays, by name.

    Raises:
        ValueError: If an array cannot be decoded or is not numeric.
    """
    arrays = {}
    for name, array in record.items():
        decoded = array.numpy()
        if decoded.dtype.kind not in _STORABLE:
            raise ValueError(f"array {name!r} has dtype {decoded.dtype}, which is not numeric")
        arrays[name] = decoded
    return arrays


def content_arrays(content: RecordDict) -> dict[str, NDArray[np.generic]]:
    """All arrays of a message. Records beside the model's are prefixed with their name."""
    records, main = content.array_records, main_key(content)
    arrays: dict[str, NDArray[np.generic]] = {}
    for key, record in records.items():
        prefix = "" if key == main else f"{key}/"
        arrays |= {f"{prefix}{name}": array for name, array in arrays_of(record).items()}
    return arrays


def to_reply(message: Message, client: int) -> Reply:
    """What a client answered, copied: strategies may overwrite a message in place."""
    if message.has_error():
        return Reply(
            client, None, error_code=message.error.code, error_reason=message.error.reason or ""
        )
    records = message.content.metric_records
    metrics = {name: value for record in records.values() for name, value in record.items()}
    extra = tuple(list(records)[1:])  # other arrays come with a prefix, and do not fit the model
    try:
        return Reply(client, content_arrays(message.content) or None, metrics, extra=extra)
    except (ValueError, TypeError, EOFError, OSError) as error:
        return Reply(client, None, metrics, _UNREADABLE, f"arrays cannot be read: {error}")


def sent_models(
    arrays: ArrayRecord, messages: Sequence[Message]
) -> tuple[Arrays, dict[int, Arrays]]:
    """The global model of a round, and the models that were sent in its place.

    Args:
        arrays: What the strategy was given to send out.
        messages: What it sends.

    Returns:
        The arrays of the first message that carries the global model (records beside it
        included), or `arrays` if none does; and, by place in `messages`, those of each message
        that carries anything else.
    """
    contents = {p: m.content for p, m in enumerate(messages) if m.has_content()}
    honest = next((c for c in contents.values() if _carries(c, arrays)), None)
    broadcast = arrays_of(arrays) if honest is None else content_arrays(honest)
    others: dict[int, Arrays] = {}
    read: dict[int, Arrays] = {}  # messages may share their content
    for place, content in contents.items():
        if honest is not None and _same_content(content, honest):
            continue
        if id(content) not in read:
            read[id(content)] = content_arrays(content)
        others[place] = read[id(content)]
    return broadcast, others


def main_record(content: RecordDict) -> ArrayRecord | None:
    """The record of a message that holds the model, if there is one."""
    key = main_key(content)
    return None if key is None else content.array_records[key]


def main_key(content: RecordDict) -> str | None:
    """Where the model stands in a message."""
    records = content.array_records
    return _MAIN if _MAIN in records else next(iter(records), None)


def _carries(content: RecordDict, arrays: ArrayRecord) -> bool:
    record = main_record(content)
    return record is not None and _same_record(record, arrays)


def _same_content(one: RecordDict, other: RecordDict) -> bool:
    mine, theirs = one.array_records, other.array_records
    if one is other:
        return True
    return list(mine) == list(theirs) and all(_same_record(mine[k], theirs[k]) for k in mine)


def _same_record(one: ArrayRecord, other: ArrayRecord) -> bool:
    """Whether two records hold the same bytes under the same names."""
    if one is other:
        return True
    if list(one) != list(other):
        return False
    pairs = ((one[name], other[name]) for name in one)
    return all(a is b or (a.stype == b.stype and a.data == b.data) for a, b in pairs)

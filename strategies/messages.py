"""Flower messages as plain data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

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
    records = content.array_records
    main = _MAIN if _MAIN in records else next(iter(records), None)
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


def first_content(messages: Iterable[Message]) -> RecordDict | None:
    """What the first message carries, if there is any."""
    return next((m.content for m in messages if m.has_content()), None)

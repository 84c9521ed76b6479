"""What a client answered, as plain data, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fl_audit.errors import shorten
from fl_audit.files import Arrays, sha256_array
from fl_audit.trace.index import Metric, TensorEntry, plain_metric

NUM_EXAMPLES = "num-examples"  # Flower's key for how many examples a client trained on
UNSTORABLE = -2  # error code of ours: arrays came that no file can hold (odd dtypes or names)
_MOST_EXAMPLES = 10**9  # beyond it, a count is a claim to all the weight of a round
_MOST_NAMED = 3  # arrays that do not fit, in one line


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """What one client answered, as plain data: the writer knows nothing of Flower.

    Attributes:
        client: Partition id where known, node id otherwise.
        arrays: The arrays it sent, or None if it sent none.
        metrics: The metrics it sent, its example count (`num-examples`) included.
        error_code: Flower's error code, if the client failed.
        error_reason: The client's own words, if it failed.
        extra: Names of records beside its model and its metrics.
    """

    client: int
    arrays: Arrays | None
    metrics: Mapping[str, object] = field(default_factory=dict)
    error_code: int | None = None
    error_reason: str | None = None
    extra: tuple[str, ...] = ()


def faults(reply: Reply, model: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with a reply that came, but for values that are not finite.

    Args:
        model: Shapes of the arrays that the client was sent.
    """
    if reply.error_code is not None:
        return []
    lines = []
    if reply.arrays is None:
        lines.append("sent no arrays")
    else:
        misfits = _misfits({name: a.shape for name, a in reply.arrays.items()}, model)
        if misfits:
            more = f" and {len(misfits) - _MOST_NAMED} more" if len(misfits) > _MOST_NAMED else ""
            named = "; ".join(misfits[:_MOST_NAMED])
            lines.append(f"sent arrays that do not fit the model: {named}{more}")
    if reply.extra:
        names = ", ".join(shorten(name) for name in reply.extra[:_MOST_NAMED])
        lines.append(f"sent records beside its model and its metrics: {names}")
    count = reply.metrics.get(NUM_EXAMPLES, 1)  # a strategy may weigh by something else
    if not _is_count(count):
        rule = f"it should be a number above 0 and at most {_MOST_EXAMPLES:,}"
        lines.append(f"says {NUM_EXAMPLES} = {shorten(plain_metric(count))}: {rule}")
    return lines


def num_examples(reply: Reply) -> Metric | None:
    """How many examples a client says it trained on, whatever it says."""
    return plain_metric(reply.metrics[NUM_EXAMPLES]) if NUM_EXAMPLES in reply.metrics else None


def describe(arrays: Arrays, *, digests: bool = True) -> dict[str, TensorEntry]:
    """dtype, shape and, unless it is left for later, digest of each array."""
    return {
        name: TensorEntry(
            dtype=str(a.dtype.newbyteorder("=")),
            shape=list(a.shape),
            sha256=sha256_array(a) if digests else None,
        )
        for name, a in arrays.items()
    }


def is_finite(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    """Whether an array holds neither NaN nor infinities."""
    return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())


def is_storable(arrays: Arrays) -> bool:
    """Whether safetensors has these dtypes."""
    return all(array.dtype.kind in "biuf" for array in arrays.values())


def _misfits(
    found: Mapping[str, tuple[int, ...]], model: Mapping[str, tuple[int, ...]]
) -> list[str]:
    lines = []
    for name, shape in model.items():
        if name not in found:
            lines.append(f"{shorten(name)} is missing")
        elif found[name] != shape:
            lines.append(f"{shorten(name)} has shape {list(found[name])}, not {list(shape)}")
    return lines + [f"{shorten(name)} is not the model's" for name in found if name not in model]


def _is_count(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return bool(0 < value <= _MOST_EXAMPLES)  # False for NaN

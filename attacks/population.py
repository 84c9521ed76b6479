"""Records from whatever a user has: arrays, torch or Hugging Face data sets, larger than memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.records import LazyInputs, Records

TaskName = Literal["classification", "regression"]
_IN_MEMORY = 1 << 28  # bytes of inputs up to which a data set is read into memory: 256 MB


def to_records(
    data: Any,
    *,
    name: str = "population",
    task: TaskName | None = None,
    width: Callable[[NDArray[np.float32]], int] | None = None,
) -> Records:
    """Records of a data set; ids are row numbers.

    Args:
        data: `Records`; a pair of arrays or tensors (inputs, labels); or anything with a length
            whose items are (input, label), such as a torch `Dataset`. Of the last, inputs beyond
            256 MB stay where they are and are read when used; labels are read once.
        name: What to call it in messages.
        task: If not given, decided by the model where `width` is, and by the labels' type
            otherwise: whole numbers are classes, others are targets.
        width: How many outputs the model has, given one input. With more than one, float labels
            such as 2.0 are classes, too.

    Raises:
        InputError: If it is none of these, lengths differ, or a value is not a finite number.
    """
    if isinstance(data, Records):
        return _as_asked(data, name, task)
    if isinstance(data, tuple | list) and len(data) == 2 and hasattr(data[0], "shape"):
        inputs, labels = _array(data[0]), _array(data[1])
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        inputs, labels = _items(data, name)
    else:
        raise InputError(
            name,
            type(data).__name__,
            "is no data set",
            "Give (inputs, labels), a torch Dataset of such pairs, or fl_audit Records.",
        )
    if len(inputs) != len(labels) or len(inputs) == 0:
        raise InputError(
            name,
            (len(inputs), len(labels)),
            "needs as many labels as inputs, and at least one",
            "Give one label per record.",
        )
    return _records(inputs, labels, name, task, width)


def _as_asked(records: Records, name: str, task: TaskName | None) -> Records:
    held: TaskName = "classification" if records.targets is None else "regression"
    if task is not None and task != held:
        raise InputError(
            "task",
            task,
            f"the Records of {name} are for {held}",
            "Give Records with targets for regression, and without them for classification.",
        )
    return records


def rows_of(given: Any, total: int, name: str) -> NDArray[np.int64]:
    """Rows from indices or from a mask.

    Raises:
        InputError: If an index is out of range or stands there twice, or a mask has another length.
    """
    rows = np.asarray(given)
    if rows.dtype == np.bool_:
        if rows.shape != (total,):
            raise InputError(
                name, rows.shape, f"a mask needs shape ({total},)", "Give one value per record."
            )
        return np.flatnonzero(rows)
    if rows.dtype.kind == "f" and rows.size:
        raise InputError(
            name,
            rows,
            f"row numbers are whole numbers, and these are {rows.dtype}",
            "Save them as integers, or as a mask of booleans.",
        )
    if rows.ndim != 1 or rows.size == 0 or rows.dtype.kind not in "iu":
        raise InputError(
            name, rows, "must be a list of row numbers, or a mask", "Give at least one row."
        )
    outside = rows[(rows < 0) | (rows >= total)]
    if outside.size:
        raise InputError(
            name,
            int(outside[0]),
            f"is out of range: the population has records 0 to {total - 1}",
            "Count from 0, in the order of the population.",
        )
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            name,
            int(values[counts > 1][0]),
            "stands there more than once",
            "Name each record once: a duplicate counts twice in every figure.",
        )
    return rows.astype(np.int64)


def _records(
    inputs: Any,
    labels: NDArray[np.generic],
    name: str,
    task: TaskName | None,
    width: Callable[[NDArray[np.float32]], int] | None,
) -> Records:
    labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        raise InputError(
            f"labels of {name}",
            (labels.shape, str(labels.dtype)),
            "must be one number per record",
            "Encode classes as whole numbers from 0.",
        )
    values = labels.astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(
            f"label of record {row} of {name}", labels[row], "must be finite", "Mend it."
        )
    if not isinstance(inputs, LazyInputs):
        inputs = _finite(inputs, name)
    chosen: TaskName = task or ("classification" if labels.dtype.kind in "biu" else "regression")
    outputs = None
    if task is None and chosen == "regression" and width is not None:
        outputs = width(inputs[:1])
        chosen = "classification" if outputs > 1 else "regression"
    ids = np.arange(len(labels))
    if chosen == "regression":
        return Records(ids, inputs, np.zeros(len(labels), np.int64), values.astype(np.float32))
    if (values != np.floor(values)).any() or (values < 0).any():
        row = int(np.flatnonzero((values != np.floor(values)) | (values < 0))[0])
        raise InputError(
            f"label of record {row} of {name}",
            labels[row],
            "a class is a whole number from 0"
            + ("" if outputs is None else f", and the model has {outputs} outputs"),
            'Encode classes as 0, 1, 2, ... (task = "classification"); for numbers to predict, say '
            'task = "regression", with a model of one output.',
        )
    return Records(ids, inputs, values.astype(np.int64))


def _finite(inputs: NDArray[np.generic], name: str, first: int = 0) -> NDArray[np.float32]:
    """As float32; `first` is the row of the first one, for the message."""
    if inputs.dtype.kind not in "biuf":
        raise InputError(
            f"inputs of {name}", str(inputs.dtype), "must be numbers", "Encode categories first."
        )
    values = inputs.astype(np.float32, copy=False)
    for start in range(0, len(values), 4096):
        block = values[start : start + 4096].reshape(len(values[start : start + 4096]), -1)
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if bad.size:
            raise InputError(
                f"record {first + start + bad[0]} of {name}",
                "NaN or infinity",
                "inputs must be finite",
                "Fill missing values, or leave the record out.",
            )
    return values


def _items(data: Any, name: str) -> tuple[Any, NDArray[np.generic]]:
    """Inputs, lazy if they are large, and all labels."""
    total = len(data)
    if total == 0:
        return np.empty((0, 1), np.float32), np.empty(0, np.int64)
    first = _pair(data, 0, name)[0]
    shape = first.shape
    if 4 * first.size * total > _IN_MEMORY:
        # every item is read here once for its label, so that a bad input is found before anything
        # runs; and again when used: a data set may augment its items by lot
        labels = np.asarray([_checked_pair(data, row, name, shape)[1] for row in range(total)])

        def fetch(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            found = [_checked_pair(data, int(row), name, shape)[0] for row in rows]
            return np.stack(found).astype(np.float32)

        return LazyInputs(fetch, np.arange(total), shape), labels
    pairs = [_checked_pair(data, row, name, shape) for row in range(total)]
    return np.stack([x for x, _ in pairs]), np.asarray([y for _, y in pairs])


def _checked_pair(
    data: Any, row: int, name: str, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], Any]:
    """An item whose input has the shape of the others, and finite numbers in it."""
    found, label = _pair(data, row, name)
    if found.shape != shape:
        raise InputError(
            f"input of item {row} of {name}",
            found.shape,
            f"the first has shape {shape}, and all must have one",
            "Resize or pad them to one shape.",
        )
    return _finite(found[None], name, first=row)[0], label


def _pair(data: Any, row: int, name: str) -> tuple[NDArray[np.generic], Any]:
    item = data[row]
    if isinstance(item, dict) and {"input", "label"} <= item.keys():
        item = (item["input"], item["label"])
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(
            f"item {row} of {name}",
            type(item).__name__,
            "must be an (input, label) pair",
            "Wrap the data set so that it returns such pairs.",
        )
    label = _array(item[1])
    if label.size != 1:
        raise InputError(
            f"label of item {row} of {name}", label.shape, "must be one number", "Give one label."
        )
    return _array(item[0]), label.reshape(()).item()


def _array(values: Any) -> NDArray[np.generic]:
    if hasattr(values, "detach"):  # a torch tensor
        values = values.detach().cpu().numpy()
    return cast("NDArray[np.generic]", np.asarray(values))

"""Records: ids, inputs and labels stay together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl_audit.errors import InputError
from fl_audit.records import Records


def records(*ids: int) -> Records:
    """Records whose inputs and labels tell their id."""
    numbers = np.asarray(ids, dtype=np.int64)
    return Records(numbers, np.stack([numbers, -numbers], axis=1).astype(np.float32), numbers % 7)


def same(a: Records, b: Records) -> bool:
    return all(
        np.array_equal(getattr(a, field), getattr(b, field)) and getattr(a, field).dtype == dtype
        for field, dtype in (("ids", np.int64), ("inputs", np.float32), ("labels", np.int64))
    )


def test_rows_are_taken_together_and_in_order() -> None:
    taken = records(10, 11, 12, 13).take([3, 0, 0])
    assert same(taken, records(13, 10, 10))
    assert len(taken) == 3


def test_no_rows_are_records_too() -> None:
    """`np.asarray([])` is float64, which cannot index."""
    empty = records(1, 2).take([])
    assert len(empty) == 0
    assert empty.inputs.shape == (0, 2)


def test_parts_are_concatenated() -> None:
    whole = records(1, 2, 3, 4, 5)
    parts = [whole.take([0, 1]), whole.take([]), whole.take([2, 3, 4])]
    assert same(Records.concatenate(parts), whole)


@pytest.mark.parametrize("short", ["ids", "inputs", "labels"])
def test_unequal_lengths_are_refused(short: str) -> None:
    whole = records(1, 2, 3)
    fields: dict[str, Any] = {"ids": whole.ids, "inputs": whole.inputs, "labels": whole.labels}
    with pytest.raises(InputError, match="equal length"):
        Records(**{**fields, short: fields[short][:2]})

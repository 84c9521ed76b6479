"""Records from whatever a user has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attacks import population
from attacks.population import rows_of, to_records
from fl_audit.errors import InputError
from fl_audit.records import LazyInputs, Records

INPUTS = np.arange(12, dtype=np.float64).reshape(6, 2)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Items:
    """A data set of pairs, which counts what is read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        self.read.append(row)
        return torch.from_numpy(INPUTS[row]), int(LABELS[row])


@pytest.mark.parametrize(
    "data",
    [
        (INPUTS, LABELS),
        (torch.from_numpy(INPUTS), torch.from_numpy(LABELS)),
        (INPUTS, LABELS.astype(np.float32)[:, None].astype(np.int64)),
        Items(),
        torch.utils.data.TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(LABELS)),
        [{"input": x, "label": y} for x, y in zip(INPUTS, LABELS, strict=True)],
    ],
    ids=["arrays", "tensors", "column", "items", "torch", "dicts"],
)
def test_every_form_gives_the_same_records(data: Any) -> None:
    found = to_records(data)
    assert np.array_equal(np.asarray(found.inputs), INPUTS.astype(np.float32))
    assert found.labels.tolist() == LABELS.tolist()
    assert found.targets is None
    assert found.ids.tolist() == list(range(6))


def test_fractional_labels_are_regression_targets() -> None:
    found = to_records((INPUTS, LABELS + 0.5))
    assert found.targets is not None
    assert found.targets.tolist() == (LABELS + 0.5).tolist()
    assert not found.labels.any()
    assert to_records((INPUTS, LABELS), task="regression").targets is not None


def test_large_data_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "_IN_MEMORY", 10)
    items = Items()
    found = to_records(items)
    assert isinstance(found.inputs, LazyInputs)
    items.read.clear()
    assert found.take([4, 1]).inputs[:].tolist() == INPUTS[[4, 1]].tolist()
    assert items.read == [4, 1]
    both = Records.concatenate([found.take([5]), found.take([0, 2])])
    assert np.asarray(both.inputs[[2, 0]]).tolist() == INPUTS[[2, 5]].tolist()
    assert found.digest() == to_records((INPUTS, LABELS)).digest()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "is no data set"),
        ((INPUTS, LABELS[:3]), "as many labels as inputs"),
        ((INPUTS, np.array(list("abcdef"))), "one number per record"),
        ((INPUTS, -LABELS), "label of record 1"),
        ((INPUTS, np.where(LABELS == 2, np.nan, 0.5)), "label of record 2"),
        ((np.where(INPUTS == 5, np.inf, INPUTS), LABELS), "record 2 of population"),
        (([["a"]] * 6, LABELS), "must be an"),
        ([1, 2, 3], "item 0 of population"),
    ],
)
def test_what_is_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_records(data)


def test_fractional_classes_are_refused() -> None:
    with pytest.raises(InputError, match="a class is a whole number"):
        to_records((INPUTS, LABELS + 0.5), task="classification")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 6], "members = 6: is out of range: the population has records 0 to 5"),
        ([-1], "out of range"),
        ([2, 1, 2], "members = 2: stands there more than once"),
        ([], "at least one row"),
        ([0.5], "row numbers are whole numbers"),
        ([1.0, 2.0], "row numbers are whole numbers"),
        (np.zeros(4, dtype=bool), "a mask needs shape"),
    ],
)
def test_rows_that_are_none(rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows_of(rows, 6, "members")


def test_a_mask_is_as_good_as_rows() -> None:
    assert rows_of(np.arange(6) > 3, 6, "members").tolist() == [4, 5]


@pytest.mark.parametrize(("width", "classes"), [(3, True), (1, False)])
def test_float_labels_are_what_the_model_makes_of_them(width: int, classes: bool) -> None:
    floats = LABELS.astype(np.float32)
    found = to_records((INPUTS, floats), width=lambda _: width)
    assert (found.targets is None) is classes
    assert to_records((INPUTS, floats), task="regression", width=lambda _: 3).targets is not None
    assert to_records((INPUTS, floats), task="classification", width=lambda _: 1).targets is None


def test_fractional_labels_of_a_model_with_classes_are_refused() -> None:
    with pytest.raises(InputError, match=r"the model has 3 outputs.*task = \"classification\""):
        to_records((INPUTS, LABELS + 0.5), width=lambda _: 3)


@pytest.mark.parametrize("in_memory", [10, 1 << 20], ids=["lazy", "read"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(3), r"input of item 4 of population = \(3,\): the first has shape \(2,\)"),
        (np.array([0, np.nan]), "record 4 of population = 'NaN or infinity'"),
    ],
    ids=["ragged", "nan"],
)
def test_a_bad_item_is_named(
    monkeypatch: pytest.MonkeyPatch, in_memory: int, bad: Any, message: str
) -> None:
    monkeypatch.setattr(population, "_IN_MEMORY", in_memory)
    with pytest.raises(InputError, match=message):
        to_records([(bad if row == 4 else INPUTS[row], 0) for row in range(6)])


def test_an_item_that_turns_bad_later_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "_IN_MEMORY", 10)
    items = [(INPUTS[row].copy(), 0) for row in range(6)]
    found = to_records(items)
    items[2][0][:] = np.nan
    with pytest.raises(InputError, match="record 2 of population"):
        found.take([1, 2]).inputs[:]


def test_records_of_another_task_are_refused() -> None:
    with pytest.raises(InputError, match="the Records of population are for classification"):
        to_records(to_records((INPUTS, LABELS)), task="regression")

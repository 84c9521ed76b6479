"""Data sets: built in, from folders, and from users' functions; and what is wrong with bad ones."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fl_audit.errors import InputError, UnknownNameError
from simulations.data import load_dataset
from simulations.scenario import Data


def load(name: object, **settings: Any) -> Any:
    return load_dataset(Data(name=str(name), **settings))


@pytest.mark.parametrize(
    ("name", "count", "shape", "classes"),
    [
        ("digits", 1797, (1, 8, 8), 10),
        ("breast-cancer", 569, (30,), 2),
        ("tiles", 1378, (3, 32, 32), 6),
        ("faces", 200, (1, 25, 25), 2),
        ("personas", 4800, (16,), 5),
    ],
)
def test_built_in_sets(name: str, count: int, shape: tuple[int, ...], classes: int) -> None:
    dataset = load(name)
    assert len(dataset.records) == count
    assert dataset.input_shape == shape
    assert set(dataset.records.labels) == set(range(classes))
    assert dataset.num_classes == classes
    assert dataset.records.inputs.dtype == np.float32
    assert dataset.records.inputs.min() >= 0
    assert dataset.records.inputs.max() <= 1


def test_tiles_are_crops_of_the_photographs_in_order() -> None:
    from simulations.data.builtin import photographs

    tile = load("tiles").records.inputs[1]  # second tile of the first row of the first picture
    expected = photographs()[0][:32, 32:64].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(tile, expected, atol=1e-6)


def test_a_limit_spreads_over_the_whole_set() -> None:
    assert set(load("tiles", limit=60).records.labels) == set(range(6))


def png(value: int, size: int = 4, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (size, size), value if mode == "L" else (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(folder: Path, pictures: list[bytes], **columns: Any) -> Path:
    """A folder of parquet as the Hugging Face hub lays it out."""
    folder.mkdir()
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    table = {
        "img": [{"bytes": p, "path": None} for p in pictures],
        "label": [i % 3 for i in range(len(pictures))],
        **columns,
    }
    extra = {k: datasets.Value("string") for k in columns if k not in features}
    set_ = datasets.Dataset.from_dict(table, datasets.Features({**features, **extra}))
    set_.to_parquet(folder / "train.parquet")
    return folder


def test_a_folder_of_parquet_images(tmp_path: Path) -> None:
    dataset = load(image_folder(tmp_path / "set", [png(10 * i) for i in range(9)]))
    assert dataset.input_shape == (3, 4, 4)
    assert dataset.num_classes == 3
    assert dataset.records.inputs[5, 0, 0, 0] == pytest.approx(50 / 255)
    assert dataset.records.labels.tolist() == [0, 1, 2] * 3


def test_a_folder_of_grey_images_by_class(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "set" / label / f"{number}.png").write_bytes(png(number, mode="L"))
    dataset = load(tmp_path / "set")
    assert dataset.input_shape == (1, 4, 4)
    assert sorted(dataset.records.labels) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("labels", [["no", "yes", None, "yes"], [0, 1, None, 1]])
def test_a_missing_label_is_no_class(labels: list[object], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table = {"x": [1.0, 2.0, 3.0, 4.0], "target": labels}
    pq.write_table(pa.table(table), tmp_path / "set" / "train.parquet")
    with pytest.raises(InputError, match=r"row 2 of data .* label is missing in column 'target'"):
        load(tmp_path / "set")
    with pytest.raises(InputError, match="row 2 of data"):  # of the file, not of those chosen
        load(tmp_path / "set", limit=3)


def test_a_table_with_words_as_labels(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table = {"x": [1.0, 2.0], "y": [3, 4], "word": ["u", "v"], "target": ["no", "yes"]}
    pq.write_table(pa.table(table), tmp_path / "set" / "train.parquet")
    dataset = load(tmp_path / "set")
    assert dataset.records.inputs.tolist() == [[1, 3], [2, 4]]
    assert dataset.records.labels.tolist() == [0, 1]


def test_bad_folders_say_what_is_wrong(tmp_path: Path) -> None:
    good = image_folder(tmp_path / "good", [png(1)] * 3)
    with pytest.raises(InputError, match=r"no such column. Did you mean 'img'"):
        load(good, input_column="imgs")
    with pytest.raises(InputError, match=r"no such column.*It has: img, label"):
        load(good, label_column="species")
    with pytest.raises(InputError, match=r"split asked for is 'validation'"):
        load(good, split="validation")
    corrupt = image_folder(tmp_path / "corrupt", [png(1), b"not a picture", png(2)])
    with pytest.raises(InputError, match=r"row 1 of data .* image is corrupt"):
        load(corrupt)
    uneven = image_folder(tmp_path / "uneven", [png(1), png(1, size=5)])
    with pytest.raises(InputError, match=r"row 1 of data .* must have one shape"):
        load(uneven)
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path / "nowhere")


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table = {"x": [1.0, 2.0], "target": [0.5, 1.5]}
    pq.write_table(pa.table(table), tmp_path / "set" / "train.parquet")
    with pytest.raises(InputError, match="real numbers, not classes"):
        load(tmp_path / "set")


class Pairs(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        if row >= len(self):
            raise IndexError(row)
        return torch.full((1, 2, 2), float(row)), row % 2


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own_data")
    monkeypatch.setitem(sys.modules, "own_data", module)
    return module


def test_own_functions_return_arrays_torch_or_hugging_face(own: types.ModuleType) -> None:
    inputs, labels = np.zeros((4, 3)), np.array([0, 1, 0, 1])
    own.arrays = lambda: (inputs, labels)  # type: ignore[attr-defined]
    own.tensors = lambda: (torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))  # type: ignore[attr-defined]
    own.pairs = Pairs  # type: ignore[attr-defined]
    own.hub = lambda: datasets.Dataset.from_dict({"input": inputs.tolist(), "label": labels})  # type: ignore[attr-defined]
    own.sized = lambda n: (np.zeros((n, 3)), np.zeros(n, dtype=int))  # type: ignore[attr-defined]
    for name in ("arrays", "tensors", "pairs", "hub"):
        dataset = load(f"own_data:{name}")
        assert dataset.records.labels.tolist() == [0, 1, 0, 1]
        assert dataset.num_classes == 2
    assert len(load("own_data:sized", settings={"n": 7}).records) == 7


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (3, "returned int"),
        ((np.zeros((2, 3)), np.array([0.5, 1.0])), "must be class numbers"),
        ((np.zeros((2, 3)), np.array([-1, 1])), "must be class numbers"),
        ((np.zeros((2, 3)), np.array([0])), "as many labels as inputs"),
        ((np.array([[0, np.nan]]), np.array([0])), "record 0 of data"),
        ((np.array([["a"]]), np.array([0])), "must be numbers"),
        (None, "the function raised ZeroDivisionError"),
    ],
)
def test_own_functions_that_return_something_else(
    found: object, message: str, own: types.ModuleType
) -> None:
    own.make = (lambda: found) if found is not None else (lambda: 1 // 0)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=message):
        load("own_data:make")


def test_settings_that_do_not_apply_are_refused() -> None:
    with pytest.raises(InputError, match=r"data.split = 'test': does not apply"):
        load("digits", split="test")
    with pytest.raises(UnknownNameError, match="Did you mean 'digits'"):
        load("digitts")

"""Columns of text: words to tokens, and a vocabulary that is that of the train split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fl_audit.errors import InputError
from simulations.data import load_dataset
from simulations.data.text import encode, split_words, vocabulary
from simulations.scenario import Data

TRAIN = ["Rain, rain in May", "the rain", "the sun's"]
TEST = ["sun in june", "the"]


def folder(path: Path, **splits: list[Any]) -> Path:
    path.mkdir()
    for split, texts in splits.items():
        table = pa.table({"text": texts, "label": [i % 2 for i in range(len(texts))]})
        pq.write_table(table, path / f"{split}.parquet")
    return path


def load(path: Path, **settings: Any) -> Any:
    return load_dataset(Data(name=str(path), **settings))


def test_words_are_small_letters_and_signs_stand_alone() -> None:
    assert split_words("It's 1.5% of Añil_x") == [
        "it",
        "'",
        "s",
        "1",
        ".",
        "5",
        "%",
        "of",
        "añil_x",
    ]


def test_tokens_follow_frequency_and_then_the_alphabet() -> None:
    known = vocabulary(TRAIN, 4)
    assert known == {"rain": 2, "the": 3, "'": 4, ",": 5}
    tokens = encode(["the rain may", "RAIN the the the the"], known, 4)
    np.testing.assert_array_equal(tokens, [[3, 2, 1, 0], [2, 3, 3, 3]])


def test_a_folder_of_texts(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", train=TRAIN, test=TEST)
    dataset = load(path, settings={"words": 2, "length": 5})
    np.testing.assert_array_equal(dataset.records.inputs[0], [2, 1, 2, 1, 1])
    assert dataset.num_classes == 2
    assert load(path).input_shape == (32,)
    limited = load(path, settings={"length": 3}, limit=2)  # the vocabulary is of all texts still
    np.testing.assert_array_equal(limited.records.inputs, load(path).records.inputs[[0, 2], :3])


def test_another_split_has_the_tokens_of_the_train_split(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", train=TRAIN, test=TEST)
    known = vocabulary(TRAIN, 100)
    found = load(path, split="test", settings={"length": 3}).records.inputs
    np.testing.assert_array_equal(found, [[known["sun"], known["in"], 1], [known["the"], 0, 0]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"settings": {"words": 0}}, r"data.settings.words = 0.*greater than or equal to 1"),
        ({"settings": {"length": "8"}}, r"data.settings.length = '8'"),
        ({"settings": {"lenght": 8}}, r"data.settings.lenght = 8.*takes: words, length"),
        ({"input_column": "texts"}, r"Did you mean 'text'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "set", train=TRAIN)
    with pytest.raises(InputError, match=message):
        load(path, **settings)


def test_bad_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 1 of data .* the text is missing in column 'text'"):
        load(folder(tmp_path / "hole", train=["a", None, "b"]))
    with pytest.raises(InputError, match="split asked for is 'train'"):
        load(folder(tmp_path / "test-only", test=TEST), split="test")
    (tmp_path / "numbers").mkdir()
    table = pa.table({"x": [1.0, 2.0], "label": [0, 1]})
    pq.write_table(table, tmp_path / "numbers" / "train.parquet")
    with pytest.raises(InputError, match="whose inputs are not text"):
        load(tmp_path / "numbers", settings={"words": 3})
    (tmp_path / "two").mkdir()
    table = pa.table({"title": ["a"], "text": ["b"], "label": [0]})
    pq.write_table(table, tmp_path / "two" / "train.parquet")
    with pytest.raises(InputError, match="2 of text, so it is not clear"):
        load(tmp_path / "two")

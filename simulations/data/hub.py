"""Folders of parquet files or images, and names on the Hugging Face hub: one code path for both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from datasets import ClassLabel, Image
from numpy.typing import NDArray
from pydantic import JsonValue

from fl_audit.errors import InputError, did_you_mean
from simulations.data.dataset import Dataset, make_dataset, spread
from simulations.data.images import pixels
from simulations.data.text import encode, text_settings, vocabulary

_LABELS = ("label", "labels", "target", "class", "fine_label")
_NUMERIC = ("int", "uint", "float", "double", "bool")
_TEXT = ("string", "large_string")


def load_hub(
    name: str,
    *,
    split: str = "train",
    input_column: str | None = None,
    label_column: str | None = None,
    user_column: str | None = None,
    limit: int | None = None,
    settings: Mapping[str, JsonValue] | None = None,
) -> Dataset:
    """Load a data set as `datasets.load_dataset` reads it.

    Args:
        name: A folder of parquet files, a folder of images by class, or a name on the hub.
        split: Which split.
        input_column: The image or text column; by default the only image column, or, for a table,
            all numeric columns but the label, or its only column of text where it has neither.
        label_column: The class column; by default one named like a label.
        user_column: The column that says whose each record is, for games about persons.
        limit: Read at most so many records, spread evenly over the split.
        settings: How a column of text becomes token numbers: `simulations.data.text.TextSettings`.

    Raises:
        InputError: If it cannot be found or read, a column or a label is missing, an image is
            corrupt or has no pixel values in [0, 1], or settings do not apply.
    """
    table = _load(name, split)
    label = _label_column(name, table, label_column)
    user = None
    if user_column is not None:
        user = _existing(name, user_column, list(table.features), "data.user_column")
    inputs = [c for c in _input_columns(name, table, label, input_column) if c != user]
    rows = np.arange(len(table))
    if limit is not None and limit < len(table):
        rows = spread(len(table), limit)
        table = table.select(rows)
    labels, num_classes = _labels(name, table, label, rows)
    is_text = _is_text(table.features[inputs[0]])
    if settings and not is_text:
        raise InputError(
            "data.settings",
            dict(settings),
            f"does not apply to data {name!r}, whose inputs are not text",
            "Leave data.settings out.",
        )
    values: NDArray[np.generic]
    if is_text:
        values = _tokens(name, table, inputs[0], rows, settings=settings or {})
    elif isinstance(table.features[inputs[0]], Image):
        values = _images(name, table, inputs[0], rows)
    else:
        columns = [np.asarray(table.with_format("numpy")[c]) for c in inputs]
        values = np.column_stack(columns)
    users = None if user is None else np.asarray(table[user][:])
    return make_dataset(name, values, labels, num_classes, users=users)


def _load(name: str, split: str) -> Any:
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # it raises anything, from any of its dependencies
        where = "folder" if Path(name).exists() else "data set on the Hugging Face hub"
        raise InputError(
            "data.name",
            name,
            f"the {where} cannot be loaded ({type(error).__name__}: {error})",
            "Give a folder of parquet files or of images by class, or a name on the hub; "
            f"the split asked for is {split!r} (data.split).",
        ) from error


def _label_column(name: str, table: Any, wanted: str | None) -> str:
    columns = list(table.features)
    if wanted is not None:
        return _existing(name, wanted, columns, "data.label_column")
    classes = [c for c in columns if isinstance(table.features[c], ClassLabel)]
    likely = [*classes, *(c for c in _LABELS if c in columns)]
    if not likely:
        raise InputError(
            "data.label_column",
            None,
            f"none of the columns of {name!r} looks like a label",
            f"Name one of: {', '.join(columns)}",
        )
    return str(likely[0])


def _input_columns(name: str, table: Any, label: str, wanted: str | None) -> list[str]:
    columns = [c for c in table.features if c != label]
    if wanted is not None:
        return [_existing(name, wanted, columns, "data.input_column")]
    images = [c for c in columns if isinstance(table.features[c], Image)]
    if len(images) == 1:
        return images
    numeric = [c for c in columns if _is_numeric(table.features[c])]
    texts = [c for c in columns if _is_text(table.features[c])]
    if not images and not numeric and len(texts) == 1:
        return texts
    if images or not numeric:
        raise InputError(
            "data.input_column",
            None,
            f"{name!r} has {len(images)} image columns, {len(numeric)} numeric ones and "
            f"{len(texts)} of text, so it is not clear which are the inputs",
            f"Name one of: {', '.join(columns)}",
        )
    return numeric


def _existing(name: str, wanted: str, columns: list[str], key: str) -> str:
    if wanted not in columns:
        raise InputError(
            key,
            wanted,
            f"{name!r} has no such column",
            f"{did_you_mean(wanted, columns)}It has: {', '.join(columns)}",
        )
    return wanted


def _is_numeric(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(_NUMERIC)


def _is_text(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")) in _TEXT


def _tokens(
    name: str,
    table: Any,
    column: str,
    rows: NDArray[np.int64],
    *,
    settings: Mapping[str, JsonValue],
) -> NDArray[np.int64]:
    """All texts as token numbers; the vocabulary is that of the whole train split."""
    chosen = text_settings(settings)
    texts = _present(name, column, table[column][:], rows)
    train = _load(name, "train")
    if column not in train.features:
        raise InputError(
            "data.input_column",
            column,
            f"the vocabulary comes from the train split of {name!r}, which has no such column",
            "Give all splits the same columns.",
        )
    whole = _present(name, column, train[column][:], np.arange(len(train)))
    return encode(texts, vocabulary(whole, chosen.words), chosen.length)


def _present(name: str, column: str, texts: Any, rows: NDArray[np.int64]) -> list[str]:
    for row, text in zip(rows, texts, strict=True):
        if text is None:
            raise InputError(
                f"row {row} of data {name!r}",
                None,
                f"the text is missing in column {column!r}",
                "Fill missing texts, or leave the row out.",
            )
    return list(texts)


def _labels(
    name: str, table: Any, column: str, rows: NDArray[np.int64]
) -> tuple[NDArray[np.generic], int | None]:
    """Class numbers, and how many classes there are if the data set says so.

    Args:
        rows: Which rows of the split these are, for error messages.
    """
    values = list(table[column][:])
    for row, value in zip(rows, values, strict=True):
        if value is None:  # as a word it would be a class of its own
            raise InputError(
                f"row {row} of data {name!r}",
                None,
                f"the label is missing in column {column!r}",
                "Fill missing labels, or leave the row out.",
            )
    feature = table.features[column]
    if isinstance(feature, ClassLabel):
        return np.asarray(values), cast(int, feature.num_classes)
    raw = np.asarray(values)
    if raw.dtype.kind in "OUSb":  # words: number them in order
        words, numbers = np.unique(raw.astype(str), return_inverse=True)
        return numbers, len(words)
    if raw.dtype.kind == "f":
        raise InputError(
            f"data.label_column {column!r}",
            raw[:3],
            f"the labels of {name!r} are real numbers, not classes",
            "Name a column of classes.",
        )
    return raw, None


def _images(name: str, table: Any, column: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """All images as (n, channels, height, width) in [0, 1]."""
    images = np.empty(0, dtype=np.float32)
    for place, row in enumerate(rows):
        found = _image(f"row {row} of data {name!r}", table, place, column)
        if place == 0:
            images = np.empty((len(rows), *found.shape), dtype=np.float32)
        if found.shape != images.shape[1:]:
            raise InputError(
                f"row {row} of data {name!r}",
                found.shape,
                f"images must have one shape; the first has {images.shape[1:]}",
                "Resize or convert them beforehand.",
            )
        images[place] = found
    return images


def _image(where: str, table: Any, place: int, column: str) -> NDArray[np.float32]:
    try:
        image = table[place][column]
    except Exception as error:  # Pillow raises anything on a hostile file
        raise InputError(
            where,
            column,
            f"the image is corrupt ({type(error).__name__})",
            "Replace the file, or leave the row out.",
        ) from error
    if image is None:
        raise InputError(where, column, "the image is missing", "Leave the row out.")
    try:
        return pixels(image)
    except ValueError as error:
        raise InputError(
            where,
            column,
            f"the image cannot be used: {error}",
            "Convert the images beforehand, to 8-bit grey or RGB.",
        ) from error

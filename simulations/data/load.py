"""One loader for every kind of name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from fl_audit.errors import InputError, UnknownNameError
from simulations.data.dataset import Dataset, spread
from simulations.scenario import Data

BUILT_IN = {
    "digits": "digits",
    "breast-cancer": "breast_cancer",
    "tiles": "tiles",
    "faces": "faces",
    "personas": "personas",
}


def load_dataset(data: Data) -> Dataset:
    """Load what `[data]` names: a built-in set, "module:function", a folder, or a hub name.

    A name with ":" is code, a name with "/" is a folder or a hub name, any other is built in.

    Raises:
        UnknownNameError: If it is none of these.
        InputError: If it cannot be loaded, or a setting does not apply to it.
    """
    if ":" in data.name:
        from simulations.data.custom import load_custom

        _refuse(data, "split", "input_column", "label_column", "user_column")
        return _limited(load_custom(data.name, data.settings), data.limit)
    if "/" in data.name:
        from simulations.data.hub import load_hub

        return load_hub(
            data.name,
            split=data.split,
            input_column=data.input_column,
            label_column=data.label_column,
            user_column=data.user_column,
            limit=data.limit,
            settings=data.settings,
        )
    if data.name not in BUILT_IN:
        raise UnknownNameError("data set", data.name, [*BUILT_IN, "./folder", "hub/name", "m:f"])
    _refuse(data, "split", "input_column", "label_column", "user_column", "settings")
    function: Callable[[], Dataset] = getattr(
        import_module("simulations.data.builtin"), BUILT_IN[data.name]
    )
    return _limited(function(), data.limit)


def _limited(dataset: Dataset, limit: int | None) -> Dataset:
    if limit is None or limit >= len(dataset.records):
        return dataset
    rows = spread(len(dataset.records), limit)
    users = None if dataset.users is None else dataset.users[rows]
    return Dataset(dataset.records.take(rows), dataset.num_classes, users)


def _refuse(data: Data, *keys: str) -> None:
    for key in keys:
        if getattr(data, key) != getattr(Data(), key):
            raise InputError(
                f"data.{key}",
                getattr(data, key),
                f"does not apply to data {data.name!r}",
                f"Leave data.{key} out.",
            )

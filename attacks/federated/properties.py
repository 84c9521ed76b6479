"""Properties of records: "class:3", or a function of one's own, "module:function"."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.factories import load_attribute
from fl_audit.records import Records

_NAME = re.compile(r"class:[0-9]+|(?!class:)[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_WRITE = "Write a function from fl_audit.records.Records to a bool array of shape (n,)."
_CLASS = re.compile(r"class:([0-9]+)")


def checked_name(name: str) -> str:
    """`name`, if it may be that of a property.

    Raises:
        ValueError: If it is neither a class nor a function.
    """
    if not _NAME.fullmatch(name):
        raise ValueError('must be "class:<number>", such as "class:3", or "module:function"')
    return name


def class_of(name: str) -> int | None:
    """3 for "class:3"; None for a function."""
    match = _CLASS.fullmatch(name)
    return int(match[1]) if match else None


def has_property(name: str, records: Records) -> NDArray[np.bool_]:
    """Which records have a property, shape (n,).

    A function is imported and called with the records: name only code that you trust.

    Raises:
        InputError: If the function cannot be imported, fails, or does not give one bool per record.
    """
    label = class_of(name)
    if label is not None:
        return np.asarray(records.labels == label)
    function = load_attribute(name, "property")
    try:
        found = np.asarray(function(records))
    except Exception as error:  # somebody else's code
        raise InputError(
            "property",
            name,
            "must be a function that takes Records and gives one bool for each; called with "
            f"{len(records)} records it raised {type(error).__name__}: {error}",
            _WRITE,
        ) from error
    if found.shape != (len(records),) or found.dtype != np.bool_:
        raise InputError(
            "property",
            name,
            f"gave {found.dtype} of shape {found.shape}, not one bool for each of {len(records)} "
            "records",
            _WRITE,
        )
    return found

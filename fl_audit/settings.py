"""`key=value` on a command line, as TOML would have it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from fl_audit.errors import InputError


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Nested tables from dotted `key=value` pairs."""
    tables: dict[str, Any] = {}
    for override in overrides:
        apply_override(tables, override)
    return tables


def apply_override(tables: dict[str, Any], override: str) -> None:
    """Set one dotted key (`federation.rounds=3`) in nested tables.

    The value is TOML, or plain text where it is not.

    Raises:
        InputError: If there is no "=", or a parent key is not a table.
    """
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last or not all(parents):
        raise InputError("--set", override, "must read key=value", "Write --set seed=1.")
    table = tables
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError("--set", key, f"{parent!r} is not a table", "Set the key itself.")
        table = inner
    table[last] = _value(text)


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # not TOML, or a number or nesting beyond all bounds
        return text
    return parsed["value"] if len(parsed) == 1 else text  # a line break could smuggle in keys

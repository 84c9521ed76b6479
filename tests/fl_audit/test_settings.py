"""`--set key=value`: TOML where it is TOML, words where it is not, never a second key."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_audit.errors import InputError
from fl_audit.settings import apply_override, parse_overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.1", 0.1),
        ("1e-3", 0.001),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('{name = "cosine"}', {"name": "cosine"}),
        ('"3"', "3"),
        ("mlp", "mlp"),
        ("simulations.models:mlp", "simulations.models:mlp"),
        ("a=b", "a=b"),
        ("", ""),
        ("2026-01-01", date(2026, 1, 1)),
        ("1\nseed = 2", "1\nseed = 2"),
        ("1" * 5000, "1" * 5000),
        ("[" * 10_000, "[" * 10_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_value_is_toml_or_plain_text(text: str, value: object) -> None:
    assert parse_overrides([f"key={text}"]) == {"key": value}


def test_dots_nest_and_the_last_one_counts() -> None:
    found = parse_overrides(["a.b.c=1", "a.b.d=2", "a.b.c=3", " a.e =4"])
    assert found == {"a": {"b": {"c": 3, "d": 2}, "e": 4}}


def test_tables_are_changed_in_place_and_the_rest_stays() -> None:
    tables: dict[str, Any] = {"federation": {"rounds": 6, "clients": 5}}
    apply_override(tables, "federation.rounds=3")
    assert tables == {"federation": {"rounds": 3, "clients": 5}}


@pytest.mark.parametrize("text", ["seed", "", "=1", " =1", "a..b=1", ".a=1", "a.=1"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="must read key=value"):
        parse_overrides([text])


def test_a_value_has_no_keys_below_it() -> None:
    with pytest.raises(InputError, match="'a' is not a table"):
        parse_overrides(["a=1", "a.b=2"])


def test_infinities_are_left_to_the_settings_to_refuse() -> None:
    assert parse_overrides(["lr=inf"]) == {"lr": math.inf}


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=30))
def test_any_text_sets_one_key_or_is_refused(text: str) -> None:
    try:
        tables = parse_overrides([text])
    except InputError:
        return
    assert len(tables) == 1

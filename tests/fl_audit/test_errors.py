"""Errors name the thing, its value, the rule and the remedy, and are safe to print."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_audit.errors import (
    AuditError,
    InputError,
    ObservationError,
    RunDirectoryError,
    TraceError,
    UnknownNameError,
    clean_text,
    did_you_mean,
    shorten,
)

REORDERING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def test_an_error_gives_name_value_rule_and_remedy() -> None:
    error = InputError("federation.clients", 1, "must be at least 2", "Use 2 or more.")
    assert str(error) == "federation.clients = 1: must be at least 2. Use 2 or more."
    assert (error.name, error.value) == ("federation.clients", 1)
    assert (error.rule, error.remedy) == ("must be at least 2", "Use 2 or more.")


@pytest.mark.parametrize(
    "kind", [InputError, ObservationError, TraceError, RunDirectoryError, UnknownNameError]
)
def test_every_error_is_an_audit_error_and_a_value_error(kind: type[Exception]) -> None:
    assert issubclass(kind, AuditError)
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize(
    "error",
    [TraceError("round", 3, "rule", "Remedy."), UnknownNameError("attack", "lria", ["lira"])],
    ids=["four arguments", "three arguments"],
)
def test_an_error_crosses_to_another_process(error: InputError) -> None:
    """Workers send their exceptions home by pickle, which by default calls `kind(message)`."""
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert (arrived.name, arrived.value, arrived.remedy) == (error.name, error.value, error.remedy)


def test_an_unknown_name_gets_a_guess_and_the_list() -> None:
    error = UnknownNameError("attack", "lria", ["lira", "cosine"])
    assert str(error) == "unknown attack 'lria'. Did you mean 'lira'? Known: cosine, lira"
    assert str(UnknownNameError("model", "x", [])) == "unknown model 'x'. Known: (none)"


def test_no_guess_is_better_than_a_wild_one() -> None:
    assert did_you_mean("zzz", ["lira", "cosine"]) == ""


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "]0;title x"),
        ("\x9b31mx", "31mx"),
        ("a\r\nb\tc\x00d", "a b c d"),
        ("a\u2028b\u2029c\x85d", "a b c d"),
        (f"a{REORDERING}b", "a b"),
        ("a\ud800b", "a b"),
        ("  naïve 测试 \U0001f600 ", "naïve 测试 \U0001f600"),
    ],
)
def test_text_from_outside_is_cleaned(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_long_text_is_cut() -> None:
    assert clean_text("x" * 501) == "x" * 499 + "…"
    assert clean_text("x" * 500) == "x" * 500
    assert len(shorten(["y" * 10_000])) == 120


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(codec=None), max_size=40))
def test_whatever_an_error_quotes_can_be_printed(text: str) -> None:
    """One line, in UTF-8, without a control character or a mark that reorders it."""
    for error in (InputError(text, text, text, text), UnknownNameError("kind", text, [text])):
        message = str(error)
        message.encode()
        assert not set(message) & {*map(chr, range(32)), *map(chr, range(127, 160)), *REORDERING}
        assert str(error).endswith(error.remedy)  # the command line prints it on a line of its own


def test_an_endless_name_makes_no_endless_error() -> None:
    endless = "x" * 1_000_000
    assert len(str(InputError(endless, endless, endless, endless))) < 5000
    assert len(str(UnknownNameError("attack", endless, ["cosine"]))) < 1000

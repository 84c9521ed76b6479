"""Errors a person can act on: the name, its value, the rule it broke, and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_UNSAFE = re.compile(
    # terminal escape sequences, control characters, the invisible marks that reorder text, and
    # halves of surrogate pairs, which no file or terminal can encode
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MAX_TEXT = 500
_MAX_NAME = 300
_MAX_CLAUSE = 2000  # a rule or a remedy: room for a list of known names


class AuditError(Exception):
    """Base of every error that fl-audit raises on purpose."""


class InputError(AuditError, ValueError):
    """A value from outside breaks a rule.

    Args:
        name: What is wrong, as the user wrote it (`federation.clients`).
        value: The offending value.
        rule: The rule it broke, as a clause ("must be at least 2").
        remedy: What to do about it, as a sentence.
    """

    def __init__(self, name: str, value: object, rule: str, remedy: str) -> None:
        # any part may quote a file or a client, whose text must not reach a terminal as it is
        self.name, self.value = clean_text(name, _MAX_NAME), value
        self.rule, self.remedy = clean_text(rule, _MAX_CLAUSE), clean_text(remedy, _MAX_CLAUSE)
        super().__init__(f"{self.name} = {shorten(value)}: {self.rule}. {self.remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        """How it crosses to another process: an exception is otherwise rebuilt from its message."""
        return _rebuild, (type(self), self.args), self.__dict__


class UnknownNameError(InputError):
    """A name that is not in a list of known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        guess = did_you_mean(name, known)
        super().__init__(
            kind, name, f"unknown {kind}", f"{guess}Known: {', '.join(known) or '(none)'}"
        )
        # the words of DESIGN.md: unknown attack 'lria'. Did you mean 'lira'? Known attacks: ...
        self.args = (f"unknown {kind} {shorten(name)}. {self.remedy}",)


class ObservationError(InputError):
    """An attack asks for something that the threat model does not grant."""


class TraceError(InputError):
    """A recorded trace cannot be trusted or read."""


class RunDirectoryError(InputError):
    """A run directory cannot be created, opened or written."""


def _rebuild(kind: type[InputError], args: tuple[object, ...]) -> InputError:
    error = kind.__new__(kind)
    error.args = args
    return error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}? " if close else ""


def clean_text(text: object, limit: int = _MAX_TEXT) -> str:
    """Text from outside (an error reason, a metric name) made safe for a terminal or a page.

    Escape sequences, control characters, bidirectional marks and lone surrogates become spaces;
    the result is cut to `limit` characters.
    """
    cleaned = " ".join(_UNSAFE.sub(" ", str(text)).split())
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def shorten(value: object) -> str:
    """`repr(value)`, cleaned and cut to the length of one line."""
    return clean_text(repr(value), 120)

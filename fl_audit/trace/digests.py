"""digests.json: a sha256 of each round.json, so that a changed or missing index is noticed.

The digest of an index is announced before the index is written, beside that of the index that
stands there: whenever the process dies, what is on disk is one of those announced.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fl_audit.files import read_json, sha256_file, write_text
from fl_audit.results import Record
from fl_audit.trace.layout import DIGESTS, index_file

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _DigestsFile(Record):
    """digests.json."""

    schema_version: Literal[1] = 1
    rounds: dict[Annotated[int, Field(ge=1, lt=10**9)], list[_Sha256]] = Field(
        description="Round: digest of its round.json; two while it is being replaced"
    )


class IndexDigests:
    """Writes digests.json of a trace.

    Args:
        trace: The trace's folder. Digests that stand there are kept.
    """

    def __init__(self, trace: Path) -> None:
        self._trace = trace
        self._announced: int | None = None  # the round whose index may be the old or the new one
        try:
            self._rounds = read_digests(trace)
        except (OSError, ValueError):  # none, or damaged: `verify` misses what is not written anew
            self._rounds = {}

    def __contains__(self, server_round: object) -> bool:
        return server_round in self._rounds

    def announce(self, server_round: int, text: str) -> None:
        """Before an index is written: whoever finds the old one or this one may believe it."""
        self._look()
        new = {hashlib.sha256(text.encode()).hexdigest()}
        path = index_file(self._trace, server_round)
        standing = {sha256_file(path)} if path.is_file() else set()
        self._rounds[server_round] = sorted(new | standing)
        self._announced = server_round
        self._write()

    def settle(self) -> None:
        """After the last index was written: only what stands there may be believed."""
        if self._announced is not None:
            self._look()
            self._write()

    def _look(self) -> None:
        if self._announced is None:
            return
        path = index_file(self._trace, self._announced)
        if path.is_file():  # else its directory could not be written, or was deleted
            self._rounds[self._announced] = [sha256_file(path)]
        self._announced = None

    def _write(self) -> None:
        content = _DigestsFile(rounds=dict(sorted(self._rounds.items())))
        write_text(self._trace / DIGESTS, content.model_dump_json(indent=1))


def read_digests(trace: Path) -> dict[int, list[str]]:
    """Round -> digests that its index may have.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is damaged.
    """
    return _DigestsFile.model_validate(read_json(trace / DIGESTS)).rounds


def digest_of_digests(trace: Path) -> str | None:
    """sha256 of digests.json, and so of everything in the trace; None if it cannot be read."""
    try:
        return sha256_file(trace / DIGESTS)
    except OSError:
        return None

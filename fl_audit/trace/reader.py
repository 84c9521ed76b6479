"""Reading a trace: lazily, tensor by tensor, and never more than the index vouches for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from fl_audit.errors import TraceError, clean_text, shorten
from fl_audit.files import find_special_file, read_json, sha256_array, sha256_file
from fl_audit.trace.index import SCHEMA_VERSION, ArraysEntry, RoundIndex, digest
from fl_audit.trace.integrity import check_indices, find_strays
from fl_audit.trace.layout import INDEX, Party, SentTo, arrays_file, index_file, round_directory
from fl_audit.trace.reply import is_finite

_ROUND = re.compile(r"round_([0-9]{4,9})")


class LazyArrays(Mapping[str, NDArray[np.generic]]):
    """Named arrays that are read, and checked against their digest, when they are asked for."""

    def __init__(self, names: list[str], load: Callable[[str], NDArray[np.generic]]) -> None:
        self._names, self._load = names, load

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        if name not in self._names:
            raise KeyError(name)
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Trace:
    """A recorded trace. Attacks never take one: they take a `TraceView`.

    Opening reads the small index files only. A round that was interrupted stays readable as far
    as it got.
    """

    def __init__(self, directory: Path, indices: list[RoundIndex]) -> None:
        self.directory = directory
        self._indices = {index.round: index for index in indices}

    @classmethod
    def open(cls, directory: Path) -> Trace:
        """Open the `trace/` folder of a run directory.

        Raises:
            TraceError: If there is no trace, an index is damaged or of a newer schema, or
                something in the folder is a link.
        """
        if not os.path.isdir(directory):  # noqa: PTH112 — Path.is_dir raises on too long a name
            raise TraceError(
                "trace",
                str(directory),
                "there is no such folder",
                "Give the run directory that `fl-audit run --out` or CuriousStrategy wrote.",
            )
        indices = [
            _read_index(round_directory(directory, number), number)
            for number in _round_numbers(directory)
            if index_file(directory, number).exists()  # else: killed before
        ]
        return cls(directory, indices)

    @property
    def rounds(self) -> tuple[int, ...]:
        """Recorded round numbers, ascending."""
        return tuple(self._indices)

    def round(self, server_round: int) -> RoundIndex:
        """The index of one round.

        Raises:
            TraceError: If the round was not recorded.
        """
        if server_round not in self._indices:
            raise TraceError(
                "round",
                server_round,
                "this round was not recorded",
                f"Recorded rounds: {list(self.rounds)}.",
            )
        return self._indices[server_round]

    def arrays(self, server_round: int, party: Party) -> LazyArrays | None:
        """The arrays of one party in one round, or None if it sent none or none were kept.

        Args:
            server_round: Round number, from 1.
            party: "broadcast", "aggregate", a client (what it replied), or `SentTo` a client (what
                it received, if that is not the broadcast).
        """
        entry = self._entry(server_round, party)
        if entry is None or not entry.is_stored:
            return None
        path = self._path(server_round, party, entry)
        return LazyArrays(list(entry.tensors), lambda name: _read_tensor(path, name, entry))

    def received(self, server_round: int, client: int) -> LazyArrays | None:
        """The model that a client received: its own if it got one, else the broadcast.

        None if it was not kept.
        """
        has_own = self.round(server_round).sent_to(client) is not None
        return self.arrays(server_round, SentTo(client) if has_own else "broadcast")

    def digest(self) -> str:
        """sha256 over what was seen; equal for two runs with one seed. Reads the index only."""
        return digest(list(self._indices.values()))

    def verify(self, *, unfinished: Collection[int] = ()) -> list[str]:
        """Check every file and every tensor; one line a finding, none if all is well.

        Args:
            unfinished: Rounds whose recording failed: their index may be missing, or may not know
                all their files.
        """
        findings = [
            f"{round_directory(self.directory, number).name}: there is no round.json"
            for number in _round_numbers(self.directory)
            if number not in self._indices and number not in unfinished
        ]
        indices = list(self._indices.values())
        findings += check_indices(self.directory, indices)
        for index in indices:
            for party in _parties(index):
                findings += self._verify_party(index.round, party)
        return findings + find_strays(self.directory, indices, unfinished)

    def missing(self) -> list[str]:
        """Files that the index speaks of and that are not there, or are empty."""
        names = []
        for index in self._indices.values():
            for party in _parties(index):
                entry = self._entry(index.round, party)
                if entry is None or not entry.is_stored:
                    continue
                path = self._path(index.round, party, entry)
                if not path.is_file() or path.stat().st_size == 0:
                    names.append(_short(path))
        return names

    def _verify_party(self, server_round: int, party: Party) -> list[str]:
        entry = self._entry(server_round, party)
        if entry is None or not entry.is_stored:
            return []
        path = self._path(server_round, party, entry)
        try:
            if any(tensor.sha256 is None for tensor in entry.tensors.values()):
                return [f"{_short(path)}: no digest was recorded, so it cannot be verified"]
            if entry.file_sha256 is not None and sha256_file(path) != entry.file_sha256:
                return [f"{_short(path)}: the file's sha256 differs from the index"]
            finite = [is_finite(_read_tensor(path, name, entry)) for name in entry.tensors]
        except OSError as error:
            return [clean_text(_damaged(path, error))]
        except TraceError as error:
            return [clean_text(error)]
        reply = self.round(server_round).reply(party) if isinstance(party, int) else None
        if reply is not None and reply.is_finite != all(finite):
            return [f"{_short(path)}: the index is wrong about NaN or infinite values"]
        return []

    def _entry(self, server_round: int, party: Party) -> ArraysEntry | None:
        index = self.round(server_round)
        if party == "broadcast":
            return index.broadcast
        if party == "aggregate":
            return index.aggregate
        if isinstance(party, SentTo):
            sent = index.sent_to(party.client)
            return None if sent is None else sent.arrays
        reply = index.reply(party)
        return None if reply is None else reply.arrays

    def _path(self, server_round: int, party: Party, entry: ArraysEntry) -> Path:
        if entry.same_as_aggregate is not None:
            server_round, party = entry.same_as_aggregate, "aggregate"
        if isinstance(party, SentTo):
            sent = self.round(server_round).sent_to(party.client)
            owner = None if sent is None else sent.same_as_client
            party = party if owner is None else SentTo(owner)
        return arrays_file(self.directory, server_round, party)


def _parties(index: RoundIndex) -> list[Party]:
    """Whose arrays a round's index may speak of; each model of single clients once."""
    sent: list[Party] = [SentTo(s.client) for s in index.sent if s.same_as_client is None]
    return ["broadcast", "aggregate", *sent, *(reply.client for reply in index.replies)]


def _round_numbers(directory: Path) -> list[int]:
    """Rounds that have a folder, ascending. Only names that the writer gives count."""
    try:
        special = find_special_file(directory)
        names = [path.name for path in directory.iterdir()]
    except OSError as error:
        raise _damaged(directory, error) from error
    if special is not None:
        raise TraceError(
            "trace",
            str(special),
            "a trace holds plain files and folders only, and this is a link or a device",
            "If you made it and trust it, put the file itself in its place.",
        )
    numbers = {int(match[1]) for name in names if (match := _ROUND.fullmatch(name))}
    return sorted(n for n in numbers if round_directory(directory, n).name in names)


def _read_index(directory: Path, number: int) -> RoundIndex:
    path = directory / INDEX
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise TraceError(
            f"{_short(path)} schema_version",
            version,
            f"this fl-audit reads up to version {SCHEMA_VERSION}",
            "Upgrade fl-audit to read this trace.",
        )
    try:
        index = RoundIndex.model_validate(content)
    except ValidationError as error:
        raise _damaged(path, error) from error
    if index.round != number:
        raise _damaged(path, f"it says round {index.round}")
    return index


def _read_tensor(path: Path, name: str, entry: ArraysEntry) -> NDArray[np.generic]:
    expected = entry.tensors[name]
    try:
        with safe_open(path, framework="numpy") as file:
            array: NDArray[np.generic] = file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error  # the last two: a dtype that numpy does not have
    checksum = None if expected.sha256 is None else sha256_array(array)
    found = (str(array.dtype), list(array.shape), checksum)
    if found != (expected.dtype, expected.shape, expected.sha256):
        raise TraceError(
            f"{_short(path)} tensor {shorten(name)}",
            found,
            f"the index says {shorten((expected.dtype, expected.shape, expected.sha256))}",
            "The file was changed or damaged after recording. Use an undamaged copy, or record "
            "the run again.",
        )
    return array


def _damaged(path: Path, why: object) -> TraceError:
    return TraceError(
        _short(path),
        clean_text(why),
        "the file is missing, truncated or damaged",
        "Restore it from a copy, or record the run again.",
    )


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"

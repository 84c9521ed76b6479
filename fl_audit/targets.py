"""The truth behind client updates: what each client trained on in each round, read when asked for.

One file a client: its records once, and which of them it used in which round. Runs of older
versions have one file a round and client; both can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_audit.errors import TraceError, clean_text
from fl_audit.files import Arrays, private_directory, write_arrays

_Scalar = TypeVar("_Scalar", bound=np.generic)
_CLIENT = re.compile(r"client_([0-9]{1,18})")
_TARGET = re.compile(r"round_([0-9]{1,18})_client_([0-9]{1,18})")  # of an older version
# what reading an array file of somebody else can raise; the last two: dtypes numpy does not have
DAMAGE = (OSError, ValueError, KeyError, SafetensorError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The truth behind one update: what was trained on.

    Attributes:
        round: Server round.
        client: Client that sent the update; -1 for a sum.
        inputs: Shape (n, ...); none if the client trained on nothing in this round.
        labels: Class indices, shape (n,).
    """

    round: int
    client: int
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ClientTargets:
    """What one client trained on.

    Attributes:
        inputs: Records that it used at all, shape (n, ...).
        labels: Their classes, shape (n,).
        used: Which it used in rounds 1, 2, ..., if it was sampled and answered; (rounds, n).
    """

    client: int
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    used: NDArray[np.bool_]

    @property
    def rounds(self) -> list[int]:
        """Rounds in which it used any."""
        return [int(place) + 1 for place in np.flatnonzero(self.used.any(axis=1))]

    def of(self, server_round: int) -> Target:
        """The target of a round: a view of the records where all of them were used."""
        known = 1 <= server_round <= len(self.used)
        used = self.used[server_round - 1] if known else np.zeros(len(self.labels), np.bool_)
        if used.all():
            return Target(server_round, self.client, self.inputs, self.labels)
        return Target(server_round, self.client, self.inputs[used], self.labels[used])


class Targets:
    """Targets by round and client. Nothing is read from a folder before it is asked for.

    Args:
        given: What clients trained on, where it is at hand.
        folder: Where `write_targets` put them, else.

    Raises:
        ValueError: If a file in `folder` names no client.
    """

    def __init__(self, given: Iterable[ClientTargets] = (), *, folder: Path | None = None) -> None:
        self._clients = {targets.client: targets for targets in given}
        self._files: dict[int, Path] = {}
        self._older: dict[tuple[int, int], Path] = {}
        for path in [] if folder is None else sorted(folder.glob("*.safetensors")):
            match, older = _CLIENT.fullmatch(path.stem), _TARGET.fullmatch(path.stem)
            if match is not None:
                self._files[int(match[1])] = path
            elif older is not None:
                self._older[int(older[1]), int(older[2])] = path
            else:
                raise ValueError(f"{path.name!r} names no round and client")

    def __bool__(self) -> bool:
        return bool(self._clients or self._files or self._older)

    def __iter__(self) -> Iterator[Target]:
        """Every target that holds a record, by client and round. Clients are read one by one."""
        for client in sorted({*self._clients, *self._files}):
            targets = self._clients.get(client) or _read_client(self._files[client], client)
            yield from (targets.of(number) for number in targets.rounds)
        for number, client in sorted(self._older):
            if client not in self._files:
                yield _read_older(self._older[number, client], number, client)

    def find(self, server_round: int, client: int) -> Target | None:
        """What a client trained on in a round; None if nobody recorded it.

        Raises:
            TraceError: If its file is damaged.
        """
        if client not in self._clients and client in self._files:
            self._clients[client] = _read_client(self._files[client], client)
        if client in self._clients:
            return self._clients[client].of(server_round)
        path = self._older.get((server_round, client))
        return None if path is None else _read_older(path, server_round, client)

    def behind(self, server_round: int, client: int, summed: Sequence[int] = ()) -> Target | None:
        """What is behind one claim: a client's records, or all records of the clients in a sum.

        Args:
            client: -1 for a sum.
            summed: The clients in the sum.

        Returns:
            None if that is not recorded of every one of them, or none trained on anything.
        """
        clients = summed if client == -1 else (client,)
        found = [self.find(server_round, one) for one in clients]
        parts = [part for part in found if part is not None and len(part.labels)]
        if not parts or len(found) != sum(part is not None for part in found):
            return None
        if len(parts) == 1:
            return Target(server_round, client, parts[0].inputs, parts[0].labels)
        return Target(
            server_round,
            client,
            np.concatenate([part.inputs for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )


def targets_of(targets: Iterable[Target]) -> Targets:
    """Targets that are at hand, as they are: records of several rounds are not told apart."""
    by_client: dict[int, list[Target]] = {}
    for target in targets:
        by_client.setdefault(target.client, []).append(target)
    return Targets(_joined(client, own) for client, own in by_client.items())


def _joined(client: int, targets: Sequence[Target]) -> ClientTargets:
    sizes = [len(target.labels) for target in targets]
    used = np.zeros((max(target.round for target in targets), sum(sizes)), dtype=np.bool_)
    for target, end, size in zip(targets, np.cumsum(sizes), sizes, strict=True):
        used[target.round - 1, end - size : end] = True
    return ClientTargets(
        client,
        np.concatenate([target.inputs for target in targets]),
        np.concatenate([target.labels for target in targets]),
        used,
    )


def write_targets(folder: Path, targets: Iterable[ClientTargets]) -> None:
    """Write what clients trained on, one file a client, of which one is in memory at a time."""
    private_directory(folder)
    for own in targets:
        arrays: Arrays = {"inputs": own.inputs, "labels": own.labels, "used": own.used}
        write_arrays(folder / f"client_{own.client}.safetensors", arrays)


def vector(arrays: Arrays, name: str, dtype: type[_Scalar]) -> NDArray[_Scalar]:
    """A checked array of one dimension.

    Raises:
        KeyError, ValueError: If there is none of this dtype.
    """
    found = arrays[name]
    if found.dtype != dtype or found.ndim != 1:
        raise ValueError(f"{name!r} has dtype {found.dtype} and {found.ndim} dimensions")
    return cast("NDArray[_Scalar]", found)


def inputs_of(arrays: Arrays, expected: int) -> NDArray[np.float32]:
    """Checked inputs of so many records.

    Raises:
        KeyError, ValueError: If they are not that many finite float32 ones.
    """
    found = arrays["inputs"]
    if found.dtype != np.float32 or found.shape[:1] != (expected,) or not np.isfinite(found).all():
        raise ValueError(f"'inputs' are not {expected} finite float32 records")
    return cast("NDArray[np.float32]", found)


def _read_client(path: Path, client: int) -> ClientTargets:
    arrays, labels, inputs = _read(path)
    used = arrays.get("used")
    if used is None or used.dtype != np.bool_ or used.shape[1:] != labels.shape:
        raise _damaged(path, "'used' are no flags of shape (rounds, records)")
    return ClientTargets(client, inputs, labels, cast("NDArray[np.bool_]", used))


def _read_older(path: Path, server_round: int, client: int) -> Target:
    _, labels, inputs = _read(path)
    return Target(server_round, client, inputs, labels)


def _read(
    path: Path,
) -> tuple[Mapping[str, NDArray[np.generic]], NDArray[np.int64], NDArray[np.float32]]:
    try:
        arrays = load_file(path)
        labels = vector(arrays, "labels", np.int64)
        return arrays, labels, inputs_of(arrays, len(labels))
    except DAMAGE as error:
        raise _damaged(path, clean_text(error)) from error


def _damaged(path: Path, reason: str) -> TraceError:
    return TraceError(
        f"game/truth/targets/{path.name}",
        reason,
        "the file is missing, truncated or damaged",
        "Restore it from a copy, or record the run again.",
    )

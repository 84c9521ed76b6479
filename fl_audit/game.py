"""The membership game: which records were drawn by lot to be trained on, and which were not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file

from fl_audit.errors import InputError, TraceError, clean_text
from fl_audit.files import Arrays, private_directory, read_json, write_arrays, write_text
from fl_audit.records import Records
from fl_audit.results import Record, Text
from fl_audit.run_directory import RunDirectory
from fl_audit.targets import DAMAGE, Targets, inputs_of, vector


class GameRules(Record):
    """How inclusion was decided, for the report."""

    decided_by: Text
    non_members_per_member: int = Field(ge=1)
    groups: int = Field(ge=1)
    null_groups: int = Field(ge=0)
    unit: Literal["record", "user"] = Field(
        default="record", description="What a lot decides about: one record, or all of a person's"
    )
    fresh_per_user: int = Field(
        default=1, ge=1, description="Unit user: records of each person to ask about"
    )
    notes: list[Text] = Field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class GameTruth:
    """What only the scorer may open.

    Attributes:
        is_member: True where a candidate was trained on, shape (n,).
        client: Client that holds (or would have held) each candidate, shape (n,).
        null_is_member: Lots drawn for the null candidates, of which none was trained on.
        targets: What clients trained on, to compare reconstructions with; read when asked for.
        uses: True where a candidate is trained on in a round if its client is sampled and
            answers, shape (n, rounds); None if that is not known.
        client_labels: How many records of each class each client trains on, shape
            (clients, classes); None if that is not known.
        property_shares: Property: share of each client's records that have it, shape (clients,).
    """

    is_member: NDArray[np.bool_]
    client: NDArray[np.int64]
    null_is_member: NDArray[np.bool_]
    targets: Targets = field(default_factory=Targets)
    uses: NDArray[np.bool_] | None = None
    client_labels: NDArray[np.int64] | None = None
    property_shares: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class MembershipGame:
    """The public part of the game: what an attacker is shown.

    Attributes:
        asked: Client in question for each candidate, shape (n,); None if the question is whether
            any client trained on it. Says nothing about membership: members and non-members of a
            group are asked about the same client.
        null_asked: The same for the null candidates.
        kinds: Place in `KINDS` of each candidate, shape (n,); None if all are natural. Public:
            the records of a group are of one kind.
        null_kinds: The same for the null candidates.
        users: Person that each candidate belongs to, shape (n,), where the question is whether
            a person's data was in the federation; None where it is about single records.
        null_users: The same for the null candidates; other persons.
    """

    rules: GameRules
    candidates: Records
    null: Records
    auxiliary: Records
    num_classes: int
    asked: NDArray[np.int64] | None = None
    null_asked: NDArray[np.int64] | None = None
    kinds: NDArray[np.int64] | None = None
    null_kinds: NDArray[np.int64] | None = None
    users: NDArray[np.int64] | None = None
    null_users: NDArray[np.int64] | None = None


NATURAL = 0
KINDS = ("natural", "mislabelled", "out-of-distribution")
"""Kinds of candidates: records as they are, and canaries (docs/games.md)."""

_RECORD_SETS = ("candidates", "null", "auxiliary")
_EXTRAS = ("asked", "kinds", "users")  # of candidates, and with "null_" of null candidates
_PROPERTY = "property:"  # before the name of one, in the file of coins


class _GameFile(Record):
    """game/game.json."""

    rules: GameRules
    num_classes: int = Field(ge=1)


def write_game(run: RunDirectory, game: MembershipGame, truth: GameTruth | None) -> None:
    """Write game/ and, apart from it and if it is known, game/truth/."""
    private_directory(run.game)
    for name in _RECORD_SETS:
        _write_records(run.game / f"{name}.safetensors", getattr(game, name))
    for name in _EXTRAS:
        own, null = getattr(game, name), getattr(game, f"null_{name}")
        if own is not None and null is not None:
            write_arrays(run.game / f"{name}.safetensors", {name: own, f"null_{name}": null})
    file = _GameFile(rules=game.rules, num_classes=game.num_classes)
    write_text(run.game / "game.json", file.model_dump_json(indent=1))
    if truth is None:
        return
    private_directory(run.truth)
    coins: dict[str, NDArray[np.generic]] = {
        "is_member": truth.is_member,
        "client": truth.client,
        "null_is_member": truth.null_is_member,
    }
    if truth.uses is not None:
        coins["uses"] = truth.uses
    if truth.client_labels is not None:
        coins["client_labels"] = truth.client_labels
    coins |= {f"{_PROPERTY}{name}": shares for name, shares in truth.property_shares.items()}
    write_arrays(run.truth / "coins.safetensors", coins)


def given_game(
    candidates: Records,
    is_member: NDArray[np.bool_] | None = None,
    auxiliary: Records | None = None,
) -> tuple[MembershipGame, GameTruth | None]:
    """A game that nobody drew: somebody's own candidates, and the truth if they know it.

    Raises:
        InputError: If there are no candidates, or `is_member` does not fit them.
    """
    if len(candidates) == 0 or (is_member is not None and is_member.shape != (len(candidates),)):
        raise InputError(
            "candidates",
            (len(candidates), None if is_member is None else is_member.shape),
            "needs at least one record, and one truth value per record where given",
            "Give as many values of is_member as candidates.",
        )
    nothing = candidates.take([])
    rules = GameRules(
        decided_by="given by the caller, not drawn by lot",
        non_members_per_member=1,
        groups=len(candidates),
        null_groups=0,
    )
    own = nothing if auxiliary is None else auxiliary
    num_classes = 1 + int(max(candidates.labels.max(), own.labels.max(initial=0)))
    game = MembershipGame(rules, candidates, nothing, own, num_classes)
    if is_member is None:
        return game, None
    clients = np.full(len(candidates), -1, dtype=np.int64)
    return game, GameTruth(np.asarray(is_member, np.bool_), clients, np.zeros(0, np.bool_))


def has_truth(run: RunDirectory) -> bool:
    """Whether the truth of the game is there."""
    return (run.truth / "coins.safetensors").is_file()


def has_game(run: RunDirectory) -> bool:
    """Whether candidates were drawn for this run."""
    return (run.game / "game.json").is_file()


def read_game(run: RunDirectory) -> MembershipGame:
    """The public part of the game.

    Raises:
        TraceError: If a file is missing or damaged.
    """
    try:
        content = _GameFile.model_validate(read_json(run.game / "game.json"))
        candidates, null, auxiliary = (
            _read_records(run.game / f"{name}.safetensors", content.num_classes)
            for name in _RECORD_SETS
        )
        extras: dict[str, NDArray[np.int64]] = {}
        for name in _EXTRAS:
            extras |= _read_extra(run, name, len(candidates), len(null))
        return MembershipGame(
            content.rules, candidates, null, auxiliary, content.num_classes, **extras
        )
    except DAMAGE as error:
        raise _damaged("game", error) from error


def read_truth(run: RunDirectory) -> GameTruth:
    """The truth. Only a scorer may call this.

    Raises:
        TraceError: If a file is missing or damaged.
    """
    try:
        coins = load_file(run.truth / "coins.safetensors")
        is_member = vector(coins, "is_member", np.bool_)
        client = vector(coins, "client", np.int64)
        if len(client) != len(is_member):
            raise ValueError("'client' and 'is_member' differ in length")
        uses = coins.get("uses")
        if uses is not None and (uses.dtype != np.bool_ or uses.shape[:1] != is_member.shape):
            raise ValueError("'uses' does not fit 'is_member'")
        return GameTruth(
            is_member,
            client,
            vector(coins, "null_is_member", np.bool_),
            Targets(folder=run.truth / "targets"),
            uses,
            _client_labels(coins),
            {
                key.removeprefix(_PROPERTY): vector(coins, key, np.float64)
                for key in coins
                if key.startswith(_PROPERTY)
            },
        )
    except DAMAGE as error:
        raise _damaged("game/truth", error) from error


def _client_labels(coins: Arrays) -> NDArray[np.int64] | None:
    found = coins.get("client_labels")
    if found is None:  # a run of an older version
        return None
    counts = cast("NDArray[np.int64]", found)
    if counts.dtype != np.int64 or counts.ndim != 2 or (counts < 0).any():
        raise ValueError("'client_labels' are no counts of shape (clients, classes)")
    return counts


def _write_records(path: Path, records: Records) -> None:
    write_arrays(path, {"ids": records.ids, "inputs": records.inputs, "labels": records.labels})


def _read_records(path: Path, num_classes: int) -> Records:
    arrays = load_file(path)
    ids, labels = vector(arrays, "ids", np.int64), vector(arrays, "labels", np.int64)
    if ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"{path.name} has labels outside 0..{num_classes - 1}")
    return Records(ids, inputs_of(arrays, len(labels)), labels)


def _read_extra(
    run: RunDirectory, name: str, num: int, num_null: int
) -> dict[str, NDArray[np.int64]]:
    """One more array on the candidates and on the null candidates, where the game has it."""
    path = run.game / f"{name}.safetensors"
    if not path.is_file():
        return {}
    arrays = load_file(path)
    found = {key: vector(arrays, key, np.int64) for key in (name, f"null_{name}")}
    if [len(values) for values in found.values()] != [num, num_null]:
        raise ValueError(f"{name!r} does not fit the candidates")
    if name == "kinds" and not all(np.isin(v, range(len(KINDS))).all() for v in found.values()):
        raise ValueError(f"'kinds' are not all in 0..{len(KINDS) - 1}")
    return found


def _damaged(name: str, error: Exception) -> TraceError:
    return TraceError(
        name,
        clean_text(error),
        "the file is missing, truncated or damaged",
        "Restore it from a copy, or record the run again.",
    )

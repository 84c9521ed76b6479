"""The membership game: which records were drawn by lot to be trained on, and which were not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_audit.errors import TraceError
from fl_audit.files import private_directory, write_arrays, write_text
from fl_audit.records import Records
from fl_audit.results import Record
from fl_audit.run_directory import RunDirectory


class GameRules(Record):
    """How inclusion was decided, for the report."""

    decided_by: str
    seed: int
    non_members_per_member: int = Field(ge=1)
    groups: int = Field(ge=1)
    null_groups: int = Field(ge=0)
    notes: list[str] = Field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The truth behind one client update: what the client trained on in that round."""

    round: int
    client: int
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class GameTruth:
    """What only the scorer may open.

    Attributes:
        is_member: True where a candidate was trained on, shape (n,).
        client: Client that holds (or would have held) each candidate, shape (n,).
        null_is_member: Lots drawn for the null candidates, of which none was trained on.
        targets: What clients trained on, where a reconstruction can be compared with it.
    """

    is_member: NDArray[np.bool_]
    client: NDArray[np.int64]
    null_is_member: NDArray[np.bool_]
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class MembershipGame:
    """The public part of the game: what an attacker is shown."""

    rules: GameRules
    candidates: Records
    null: Records
    auxiliary: Records
    num_classes: int


_RECORD_SETS = ("candidates", "null", "auxiliary")


def write_game(run: RunDirectory, game: MembershipGame, truth: GameTruth) -> None:
    """Write game/ and, apart from it, game/truth/."""
    private_directory(run.game)
    private_directory(run.truth)
    for name in _RECORD_SETS:
        _write_records(run.game / f"{name}.safetensors", getattr(game, name))
    rules = {"rules": game.rules.model_dump(), "num_classes": game.num_classes}
    write_text(run.game / "game.json", json.dumps(rules, indent=1))
    coins = {
        "is_member": truth.is_member,
        "client": truth.client,
        "null_is_member": truth.null_is_member,
    }
    write_arrays(run.truth / "coins.safetensors", coins)


def write_targets(run: RunDirectory, targets: list[Target]) -> None:
    """Write what clients trained on, one file a target."""
    folder = private_directory(run.truth / "targets")
    for target in targets:
        path = folder / f"round_{target.round:04d}_client_{target.client}.safetensors"
        write_arrays(path, {"inputs": target.inputs, "labels": target.labels})


def has_game(run: RunDirectory) -> bool:
    """Whether candidates were drawn for this run."""
    return (run.game / "game.json").is_file()


def read_game(run: RunDirectory) -> MembershipGame:
    """The public part of the game.

    Raises:
        TraceError: If a file is missing or damaged.
    """
    try:
        content = json.loads((run.game / "game.json").read_text(encoding="utf-8"))
        candidates, null, auxiliary = (
            _read_records(run.game / f"{name}.safetensors") for name in _RECORD_SETS
        )
        return MembershipGame(
            GameRules.model_validate(content["rules"]),
            candidates,
            null,
            auxiliary,
            int(content["num_classes"]),
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _damaged("game", error) from error


def read_truth(run: RunDirectory) -> GameTruth:
    """The truth. Only a scorer may call this.

    Raises:
        TraceError: If a file is missing or damaged.
    """
    try:
        coins = load_file(run.truth / "coins.safetensors")
        return GameTruth(
            coins["is_member"],
            coins["client"],
            coins["null_is_member"],
            tuple(_read_target(p) for p in sorted((run.truth / "targets").glob("*.safetensors"))),
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _damaged("game/truth", error) from error


def _read_target(path: Path) -> Target:
    _, server_round, _, client = path.stem.split("_")
    arrays = load_file(path)
    return Target(int(server_round), int(client), arrays["inputs"], arrays["labels"])


def _write_records(path: Path, records: Records) -> None:
    write_arrays(path, {"ids": records.ids, "inputs": records.inputs, "labels": records.labels})


def _read_records(path: Path) -> Records:
    arrays = load_file(path)
    return Records(arrays["ids"], arrays["inputs"], arrays["labels"])


def _damaged(name: str, error: Exception) -> TraceError:
    return TraceError(
        name,
        str(error),
        "the file is missing, truncated or damaged",
        "Restore it from a copy, or record the run again.",
    )

"""The game on disk: public part and truth apart, both checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fl_audit.errors import TraceError
from fl_audit.game import (
    GameRules,
    GameTruth,
    MembershipGame,
    has_game,
    read_game,
    read_truth,
    write_game,
)
from fl_audit.records import Records
from fl_audit.run_directory import RunDirectory
from fl_audit.targets import ClientTargets, write_targets

RULES = GameRules(decided_by="a fair coin", non_members_per_member=1, groups=2, null_groups=1)


def records(start: int, count: int) -> Records:
    ids = np.arange(start, start + count)
    inputs = np.random.default_rng(start).normal(size=(count, 1, 2, 2)).astype(np.float32)
    return Records(ids, inputs, ids % 3)


GAME = MembershipGame(RULES, records(0, 4), records(4, 2), records(6, 0), 3)
TRUTH = GameTruth(
    is_member=np.array([True, False, False, True]),
    client=np.array([0, 0, 1, 1]),
    null_is_member=np.array([False, True]),
)
TARGETS = ClientTargets(
    12, records(10, 2).inputs, records(10, 2).labels, np.array([[True, True], [False, True]])
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    write_game(run, GAME, TRUTH)
    write_targets(run.truth / "targets", [TARGETS])
    return run


def equal(a: object, b: object) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        and getattr(a, name).dtype == getattr(b, name).dtype
        for name in ("ids", "inputs", "labels")
    )


def test_the_public_part_comes_back(run: RunDirectory) -> None:
    game = read_game(run)
    assert (game.rules, game.num_classes) == (RULES, 3)
    assert equal(game.candidates, GAME.candidates)
    assert equal(game.null, GAME.null)
    assert equal(game.auxiliary, GAME.auxiliary)


def test_kinds_and_users_come_back_and_are_checked(tmp_path: Path) -> None:
    extras = {
        "kinds": np.array([0, 0, 1, 2]),
        "null_kinds": np.array([0, 1]),
        "users": np.array([5, 5, 9, 9]),
        "null_users": np.array([7, 8]),
    }
    run = RunDirectory(tmp_path / "run")
    write_game(run, replace(GAME, **extras), TRUTH)
    game = read_game(run)
    for name, values in extras.items():
        np.testing.assert_array_equal(getattr(game, name), values)
    for bad in (np.array([0, 0, 1, 3]), np.array([0, 0, 1])):
        save_file({"kinds": bad, "null_kinds": extras["null_kinds"]}, kinds_file(run))
        with pytest.raises(TraceError, match="kinds"):
            read_game(run)


def kinds_file(run: RunDirectory) -> Path:
    return run.game / "kinds.safetensors"


def test_a_game_without_them_has_none(run: RunDirectory) -> None:
    """Runs of before, and games in which every record is natural and stands for itself."""
    assert not kinds_file(run).exists()
    assert read_game(run).kinds is None
    assert read_game(run).users is None


def test_the_truth_comes_back(run: RunDirectory) -> None:
    truth = read_truth(run)
    assert (truth.is_member == TRUTH.is_member).all()
    assert (truth.client == TRUTH.client).all()
    assert (truth.null_is_member == TRUTH.null_is_member).all()
    assert [(t.round, t.client, len(t.labels)) for t in truth.targets] == [(1, 12, 2), (2, 12, 1)]
    read = truth.targets.find(1, 12)
    assert read is not None
    assert (read.inputs == TARGETS.inputs).all()
    assert (read.labels == TARGETS.labels).all()


def test_the_public_part_does_not_depend_on_the_lots(run: RunDirectory, tmp_path: Path) -> None:
    """Whoever reads it byte by byte learns nothing about who is a member."""
    other = RunDirectory(tmp_path / "other")
    write_game(other, GAME, GameTruth(~TRUTH.is_member, TRUTH.client, ~TRUTH.null_is_member))
    for path in run.game.glob("*.*"):
        assert path.read_bytes() == (other.game / path.name).read_bytes(), path
    assert (run.truth / "coins.safetensors").read_bytes() != (
        other.truth / "coins.safetensors"
    ).read_bytes()


def test_whether_there_is_a_game(run: RunDirectory, tmp_path: Path) -> None:
    assert has_game(run)
    assert not has_game(RunDirectory(tmp_path / "nothing"))


# -- from an enemy ---------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], Any]
BAD_JSON: dict[str, bytes | Change] = {
    "missing": b"",
    "not UTF-8": b"\xff",
    "deep": b"[" * 100_000,
    "a list": lambda c: [],
    "null": lambda c: None,
    "no classes": lambda c: {**c, "num_classes": 0},
    "endless classes": lambda c: {**c, "num_classes": float("inf")},
    "classes that are a list": lambda c: {**c, "num_classes": [3]},
    "rules that are a list": lambda c: {**c, "rules": []},
    "an unknown rule": lambda c: {**c, "rules": {**c["rules"], "extra": 1}},
    "fewer classes than labels": lambda c: {**c, "num_classes": 1},
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_damaged_game_is_refused(name: str, run: RunDirectory) -> None:
    file, bad = run.game / "game.json", BAD_JSON[name]
    if callable(bad):
        bad = json.dumps(bad(json.loads(file.read_text()))).encode()
    file.write_bytes(bad)
    with pytest.raises(TraceError, match="missing, truncated or damaged"):
        read_game(run)


BAD_ARRAYS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "a missing array": lambda a: {"ids": a["ids"], "labels": a["labels"]},
    "too few labels": lambda a: {**a, "labels": a["labels"][:-1]},
    "too few inputs": lambda a: {**a, "inputs": a["inputs"][:-1]},
    "float labels": lambda a: {**a, "labels": a["labels"].astype(np.float64)},
    "a table of labels": lambda a: {**a, "labels": a["labels"][:, None]},
    "a class that is not there": lambda a: {**a, "labels": a["labels"] + 3},
    "a negative class": lambda a: {**a, "labels": a["labels"] - 3},
    "float ids": lambda a: {**a, "ids": a["ids"].astype(np.float32)},
    "float64 inputs": lambda a: {**a, "inputs": a["inputs"].astype(np.float64)},
    "NaN inputs": lambda a: {**a, "inputs": a["inputs"] * np.float32(np.nan)},
    "one number for inputs": lambda a: {**a, "inputs": np.array(1, dtype=np.float32)},
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_damaged_records_are_refused(name: str, run: RunDirectory) -> None:
    file = run.game / "candidates.safetensors"
    save_file(BAD_ARRAYS[name](load_file(file)), file)
    with pytest.raises(TraceError, match="missing, truncated or damaged"):
        read_game(run)


BAD_COINS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "numbers for lots": lambda a: {**a, "is_member": a["is_member"].astype(np.float32)},
    "too few clients": lambda a: {**a, "client": a["client"][:-1]},
    "float clients": lambda a: {**a, "client": a["client"].astype(np.float32)},
    "no null": lambda a: {k: v for k, v in a.items() if k != "null_is_member"},
}


@pytest.mark.parametrize("name", BAD_COINS)
def test_damaged_lots_are_refused(name: str, run: RunDirectory) -> None:
    file = run.truth / "coins.safetensors"
    save_file(BAD_COINS[name](load_file(file)), file)
    with pytest.raises(TraceError, match="game/truth"):
        read_truth(run)


def test_a_target_that_names_no_client_is_refused(run: RunDirectory) -> None:
    good = run.truth / "targets" / "client_12.safetensors"
    good.rename(good.with_name("client_x.safetensors"))
    with pytest.raises(TraceError, match="names no round and client"):
        read_truth(run)


@pytest.mark.parametrize("place", ["game/auxiliary", "game/truth/coins"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "bfloat16"])
def test_a_damaged_file_is_refused(place: str, damage: str, run: RunDirectory) -> None:
    file = run.path / f"{place}.safetensors"
    data = file.read_bytes()
    file.unlink()
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(data[:-1] if "coins" in place else data[:20])
    elif damage == "bfloat16":
        header = b'{"ids":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
        file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(TraceError, match="missing, truncated or damaged"):
        read_truth(run) if "coins" in place else read_game(run)

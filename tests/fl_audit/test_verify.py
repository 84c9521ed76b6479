"""A run as a whole: what run.json says, and what is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_audit.run_directory import Problem, RunDirectory
from fl_audit.verify import missing_last_rounds, verify_run

RunTables = Callable[..., Path]


@pytest.fixture(scope="module")
def recorded(run_tables: RunTables) -> Path:
    return run_tables(
        "verified",
        federation={"rounds": 3, "clients": 2},
        data={"examples_per_client": 10, "test": 20},
    )


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(recorded, tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


def edit(run: RunDirectory, **changes: Any) -> None:
    run.write_manifest(run.read_manifest().model_copy(update=changes))


def edit_index(run: RunDirectory, number: int, old: str, new: str) -> None:
    path = run.trace / f"round_{number:04d}" / "round.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def lose(run: RunDirectory, number: int) -> None:
    shutil.rmtree(run.trace / f"round_{number:04d}")


def test_a_whole_run_verifies(run: RunDirectory) -> None:
    assert verify_run(run) == []
    assert run.read_manifest().trace_digest is not None


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_round_is_named(number: int, run: RunDirectory) -> None:
    lose(run, number)
    (run.trace / "digests.json").unlink()  # without it, run.json is all that knows
    expected = f"round {number}: it is missing; run.json is about 3 rounds, done"
    assert expected in verify_run(run)


def test_an_interrupted_run_misses_only_what_came_before(run: RunDirectory) -> None:
    edit(run, state="interrupted", planned_rounds=9)
    assert verify_run(run) == []
    lose(run, 2)
    assert "round 2: it is missing; run.json is about 3 rounds, interrupted" in verify_run(run)


def test_a_state_set_back_is_noticed(run: RunDirectory) -> None:
    edit_index(run, 3, '"aggregated"', '"replied"')
    assert "round 3: its index says 'replied', though the round ended" in verify_run(run)
    assert "round_0003/round.json: its sha256 differs from digests.json" in verify_run(run)


def test_an_index_that_is_forged_together_with_its_digest_is_noticed(run: RunDirectory) -> None:
    from fl_audit.files import sha256_file

    path = run.trace / "round_0002" / "round.json"
    before = sha256_file(path)
    edit_index(run, 2, '"num_examples":', '"num_examples":1')
    digests = run.trace / "digests.json"
    digests.write_text(digests.read_text().replace(before, sha256_file(path)))
    assert verify_run(run) == ["trace/digests.json: its sha256 differs from run.json"]
    edit(run, trace_digest=None)
    (finding,) = verify_run(run)
    assert finding.startswith("run.json: it has no digest of trace/digests.json")


def test_more_rounds_than_planned_are_noticed(run: RunDirectory) -> None:
    edit(run, planned_rounds=2)
    assert verify_run(run) == ["round 3: run.json planned 2 rounds"]


def test_a_round_whose_recording_failed_is_excused_and_no_other(run: RunDirectory) -> None:
    """The index of such a round may not know a file that was written for it."""
    edit_index(run, 2, '"aggregated"', '"sent"')
    (run.trace / "round_0002" / "client_9.safetensors").write_bytes(b"")
    problem = Problem(where="recording", round=2, message="recording failed: OSError: no space")
    without = verify_run(run)
    edit(run, problems=[problem])
    excused = verify_run(run)
    assert [line for line in without if line not in excused] == [
        "round 2: its index says 'sent', though the round ended",
        "round_0002/client_9.safetensors: it is not part of the trace",
    ]
    lose(run, 2)
    lose(run, 1)
    assert [line for line in verify_run(run) if "it is missing" in line] == [
        "round 1: it is missing; run.json is about 3 rounds, done"
    ]


def test_a_run_of_an_older_fl_audit_says_that_its_indices_are_not_verified(
    run: RunDirectory,
) -> None:
    (run.trace / "digests.json").unlink()
    edit(run, trace_digest=None)
    (finding,) = verify_run(run)
    assert finding.startswith("digests.json: there is none, so no round.json can be verified")


def test_a_damaged_manifest_is_said_and_the_trace_is_verified_all_the_same(
    run: RunDirectory,
) -> None:
    run.manifest_file.write_text("{")
    (run.trace / "round_0001" / "client_0.safetensors").unlink()
    manifest, file = verify_run(run)
    assert manifest.startswith("run.json = ")
    assert "client_0.safetensors" in file


@pytest.mark.parametrize(
    ("lost", "up_to", "missing"),
    [([], None, []), ([3], None, [3]), ([2, 3], None, [2, 3]), ([3], 2, []), ([2], None, [])],
)
def test_missing_last_rounds(
    lost: list[int], up_to: int | None, missing: list[int], run: RunDirectory
) -> None:
    for number in lost:
        lose(run, number)
    found = missing_last_rounds(run.read_manifest(), run.open_trace(), up_to=up_to)
    assert found == missing
    edit(run, state="interrupted")
    assert missing_last_rounds(run.read_manifest(), run.open_trace(), up_to=up_to) == []

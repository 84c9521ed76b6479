"""Export: what was asked for is there, or nothing is written; and never in a shared place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_audit.errors import InputError
from fl_audit.trace import RecordingPolicy, Reply, Trace, TraceWriter
from fl_audit.trace.export import export_trace

MODEL = {"w": np.zeros(3, dtype=np.float32)}


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """Three rounds: client 1 replies in the second only, client 2 with another shape, 3 never."""
    writer = TraceWriter(tmp_path / "run" / "trace", RecordingPolicy())
    for number in (1, 2, 3):
        writer.begin_round(number, MODEL, [0, 1, 2, 3])
        replies = [Reply(0, {"w": np.ones(3, dtype=np.float32)}), Reply(2, {"w": np.ones(5)})]
        replies += [Reply(1, MODEL)] if number == 2 else []
        writer.add_replies(number, replies)
        writer.end_round(number, MODEL, {})
    writer.close()
    (tmp_path / "run" / "run.json").write_text(
        '{"schema_version": 1, "engine": "local", "threat_model": {}}'
    )
    return Trace.open(tmp_path / "run" / "trace")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_client_that_replied_in_one_of_the_rounds_is_exported(
    trace: Trace, tmp_path: Path
) -> None:
    assert export_trace(trace, tmp_path / "x", clients=[1], rounds=[3, 2, 2]) == 5
    assert [n for n in names(tmp_path / "x") if "client" in n] == ["round_0002_client_1.npz"]


def test_updates_are_differences(trace: Trace, tmp_path: Path) -> None:
    export_trace(trace, tmp_path / "x", rounds=[1], updates=True)
    assert names(tmp_path / "x")[-1] == "round_0001_update_0.npz"  # of client 2 there is none
    with np.load(tmp_path / "x" / "round_0001_update_0.npz", allow_pickle=False) as update:
        assert update["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": [0, 99]}, r"client = 99.*Clients that can: \[0, 1, 2\]"),
        ({"clients": [3]}, r"client = 3"),
        ({"clients": [1], "rounds": [1]}, r"client = 1.*Clients that can: \[0, 2\]"),
        ({"clients": [2], "updates": True}, r"client = 2.*Clients that can: \[0, 1\]"),
        ({"rounds": [1, 50]}, r"round = 50: this round was not recorded"),
        ({"rounds": []}, r"rounds = \[\]: no arrays were recorded"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_written(
    options: dict[str, list[int]], message: str, trace: Trace, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export_trace(trace, tmp_path / "x", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("app/x", "inside the Flower app"),
        ("link/x", "inside the Flower app"),
        ("run/x", "inside the run directory"),
        ("run/trace/x", "inside the run directory"),
    ],
)
def test_a_flower_app_and_a_run_directory_are_no_places_for_it(
    place: str, message: str, trace: Trace, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "pyproject.toml").write_text("[tool.flwr.app]\npublisher = 'me'\n")
    (tmp_path / "link").symlink_to(tmp_path / "app", target_is_directory=True)
    with pytest.raises(InputError, match=message):
        export_trace(trace, tmp_path / place)
    assert not (tmp_path / place).exists()

"""Resuming: the same digests as an undisturbed run, and never over something else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_audit.errors import InputError, RunDirectoryError
from fl_audit.files import write_arrays
from fl_audit.run_directory import RunDirectory
from fl_audit.trace.replay import ReplayError
from simulations.run import run_scenario
from simulations.scenario import dump_scenario, parse_scenario

TABLES: dict[str, Any] = {
    "federation": {"rounds": 6, "clients": 3, "fraction": 0.7},
    "data": {"examples_per_client": 20},
    "defence": {
        "name": "DifferentialPrivacyServerSideFixedClipping",
        "noise_multiplier": 0.1,
        "clipping_norm": 1.0,
    },
    "audit": {"attacks": ["row_space"]},
}
SCENARIO = parse_scenario(TABLES)
PROGRAM = """
import sys
from simulations.run import run_scenario
from simulations import client_app
import time
real = client_app.train
def slow(*args, **kwargs):
    time.sleep(0.05)
    return real(*args, **kwargs)
client_app.train = slow
run_scenario(sys.argv[1], out=sys.argv[2])
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run_scenario(SCENARIO, out=out)
    return RunDirectory.open(out)


def files(run: RunDirectory) -> dict[str, bytes]:
    """All arrays, indices and results of a run."""
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for folder in (run.trace, run.results, run.game)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kill_at(marker: str, folder: Path) -> Path:
    """Start the scenario in a process of its own; SIGKILL it when a file appears."""
    (folder / "s.toml").write_text(dump_scenario(SCENARIO))
    out = folder / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder / "s.toml"), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while not (out / marker).exists() and time.monotonic() < deadline:
        assert process.poll() is None, f"ended before {marker} appeared"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return out


@pytest.mark.parametrize(
    "marker",
    [
        "run.json",
        "trace/round_0001/broadcast.safetensors",
        "trace/round_0003/client_1.safetensors",
        "trace/round_0006/aggregate.safetensors",
    ],
)
def test_killed_and_resumed_equals_undisturbed(
    marker: str, tmp_path: Path, undisturbed: RunDirectory
) -> None:
    if marker.endswith("client_1.safetensors"):  # which client is sampled depends on the seed
        sampled = undisturbed.open_trace().round(3).sampled[0]
        marker = f"trace/round_0003/client_{sampled}.safetensors"
    out = kill_at(marker, tmp_path)
    report = run_scenario(SCENARIO, out=out, resume=True)
    run = RunDirectory.open(out)
    assert report.trace is not None
    assert report.trace.digest == undisturbed.open_trace().digest()
    assert files(run) == files(undisturbed)
    assert run.open_trace().verify() == []


def test_resuming_a_finished_run_gives_it_again(tmp_path: Path) -> None:
    first = run_scenario(SCENARIO, out=tmp_path / "run")
    again = run_scenario(SCENARIO, out=tmp_path / "run", resume=True)
    assert again.trace == first.trace
    assert again.attacks == first.attacks


def test_resuming_a_run_that_never_began_runs_it(tmp_path: Path) -> None:
    assert run_scenario(SCENARIO, out=tmp_path / "run", resume=True).run.state == "done"


def interrupted(out: Path) -> RunDirectory:
    """A run that looks interrupted after round 6 (of 6)."""
    run_scenario(SCENARIO, out=out)
    run = RunDirectory.open(out)
    run.write_manifest(run.read_manifest().model_copy(update={"state": "interrupted"}))
    return run


def test_a_replay_that_differs_stops_and_keeps_what_was_recorded(tmp_path: Path) -> None:
    """As after an upgrade of a library: here, what was recorded came from other arrays."""
    run = interrupted(tmp_path / "run")
    index = run.trace / "round_0002" / "round.json"
    text = index.read_text()
    reply = run.open_trace().round(2).replies[0]
    assert reply.arrays is not None
    digest = reply.arrays.tensors["1.weight"].sha256
    assert digest is not None
    index.write_text(text.replace(digest, "0" * 64))
    before = files(run)
    with pytest.raises(ReplayError, match=r"round 2, reply of client \d = \"array '1.weight'\""):
        run_scenario(SCENARIO, out=run.path, resume=True)
    assert files(run) == before
    assert run.read_manifest().state == "failed"


def test_files_damaged_since_are_healed_by_the_replay(
    tmp_path: Path, undisturbed: RunDirectory
) -> None:
    run = interrupted(tmp_path / "run")
    client = run.open_trace().round(2).sampled[0]
    path = run.trace / "round_0002" / f"client_{client}.safetensors"
    write_arrays(path, {"1.weight": np.zeros(3)})
    run_scenario(SCENARIO, out=run.path, resume=True)
    assert files(run) == files(undisturbed)


def test_another_scenario_is_not_resumed(tmp_path: Path) -> None:
    run = interrupted(tmp_path / "run")
    other = parse_scenario({**TABLES, "seed": 5})
    with pytest.raises(InputError, match=r"scenario key 'seed' = 5: .*begun with 0"):
        run_scenario(other, out=run.path, resume=True)


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="deleted and resumed"):
        run_scenario(SCENARIO, out=tmp_path / "run", resume=True, overwrite=True)


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_two_runs_never_write_to_one_directory(options: dict[str, bool], tmp_path: Path) -> None:
    run = interrupted(tmp_path / "run")
    run.lock()
    before = files(run)
    with pytest.raises(RunDirectoryError, match="another run is writing"):
        run_scenario(SCENARIO, out=run.path, **options)  # type: ignore[arg-type]
    assert files(run) == before
    run.release()
    run_scenario(SCENARIO, out=run.path, **options)  # type: ignore[arg-type]

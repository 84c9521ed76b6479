"""The command line as a user types it: output, exit codes, and what bad input says."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fl_audit.cli.main import main

CODE = "from fl_audit.cli.main import main; main()"
SCENARIO = """
[federation]
rounds = 1
[data]
examples_per_client = 20
[audit]
attacks = ["row_space"]
"""


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def fl_audit(*arguments: object) -> Done:
    """Run a command in this process (a process of its own costs seconds of imports)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["fl-audit", *map(str, arguments)])
        patch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as left:
            main()
    return Done(int(left.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "s.toml").write_text(SCENARIO)
    done = fl_audit("run", folder / "s.toml", "--out", folder / "run", "--set", "seed=3")
    assert done.returncode == 0, done.stderr
    assert "row_space" in done.stdout
    assert f"Report: {(folder / 'run' / 'report.html').resolve()}" in done.stdout
    return folder / "run"


def test_attack_a_recorded_run_later(recorded: Path) -> None:
    done = fl_audit("attack", recorded, "--attack", "cosine", "--set", "layers=['3.bias']")
    assert done.returncode == 0, done.stderr
    assert "cosine" in done.stdout
    assert (recorded / "results" / "cosine.json").is_file()
    assert "cosine" in (recorded / "report.html").read_text(encoding="utf-8")


def test_render_the_report_again(recorded: Path) -> None:
    (recorded / "report.html").unlink()
    assert fl_audit("report", recorded).returncode == 0
    assert (recorded / "report.html").is_file()


def test_attacks_lists_what_each_needs() -> None:
    done = fl_audit("attacks")
    assert done.returncode == 0
    for word in ("row_space", "client-updates", "loss_threshold", "labels"):
        assert word in done.stdout


def test_version() -> None:
    assert fl_audit("--version").stdout.startswith("fl-audit 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{run}/scenario.toml", "--out", "{run}"], "is not empty"),
        (["run", "{run}/scenario.toml", "--out", "{tmp}/x", "--set", "seed"], "key=value"),
        (["run", "{run}/none.toml", "--out", "{tmp}/x"], "cannot be read"),
        (["run", "{run}/scenario.toml", "--out", "{tmp}/x", "--set", "seeds=1"], "'seed'"),
        (
            ["run", "{run}/scenario.toml", "--out", "{tmp}/x", "--cpus-per-client", "2"],
            "cpus_per_client = 2.0: engine 'local' uses no Ray",
        ),
        (
            ["run", "{run}/scenario.toml", "--out", "{tmp}/x", "--gpus-per-client", "1"],
            "gpus_per_client = 1.0: engine 'local' uses no Ray",
        ),
        (["trace", "export", "{run}", "{tmp}/x", "--client", "99"], "client = 99"),
        (["trace", "export", "{run}", "{run}/x"], "inside the run directory"),
        (["attack", "{tmp}", "--attack", "cosine"], "holds no run.json"),
        (["attack", "{run}", "--attack", "cosin"], "Did you mean 'cosine'"),
        (["attack", "{run}", "--attack", "cosine", "--set", "layer=1"], "Did you mean 'layers'"),
        (["attack", "{run}", "--attack", "cosine", "--device", "tpu"], "unknown device"),
        (["report", "{tmp}/nothing"], "holds no run.json"),
    ],
)
def test_bad_input_says_what_to_mend_and_leaves_with_2(
    arguments: list[str], message: str, recorded: Path, tmp_path: Path
) -> None:
    done = fl_audit(*(a.format(run=recorded, tmp=tmp_path) for a in arguments))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_attack_that_gives_no_number_leaves_with_1(recorded: Path) -> None:
    done = fl_audit("attack", recorded, "--attack", "cosine", "--set", "layers=['x']")
    assert done.returncode == 1
    assert "no such parameter" in " ".join(done.stdout.split())


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    """SIGINT while rounds go by; the recorded ones are kept and can be reported."""
    (tmp_path / "s.toml").write_text(SCENARIO)
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "run", str(tmp_path / "s.toml"), "--out", str(tmp_path / "r"),
         "--set", "federation.rounds=100000"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    second_round = tmp_path / "r" / "trace" / "round_0002" / "round.json"
    deadline = time.monotonic() + 60
    while not second_round.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "fl-audit report" in stderr
    assert "Traceback" not in stderr
    done = fl_audit("report", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert "interrupted" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


def test_run_leaves_with_1_when_an_attack_gave_no_number(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SCENARIO)
    done = fl_audit(
        "run", tmp_path / "s.toml", "--out", tmp_path / "r", "--set", "model.name=lenet_zhu"
    )
    assert done.returncode == 1
    assert "not available" in done.stdout


def test_a_federation_that_fails_is_said_in_one_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.serverapp.strategy import FedAvg

    def broken(*_: object) -> None:
        raise ZeroDivisionError("total weight is zero")

    monkeypatch.setattr(FedAvg, "aggregate_train", broken)
    (tmp_path / "s.toml").write_text(SCENARIO)
    done = fl_audit("run", tmp_path / "s.toml", "--out", tmp_path / "r")
    assert done.returncode == 1
    assert "ZeroDivisionError: total weight is zero" in done.stderr
    assert "fl-audit report" in done.stderr
    assert "Traceback" not in done.stderr


def test_trace_info_verify_and_export(recorded: Path, tmp_path: Path) -> None:
    info = fl_audit("trace", "info", recorded)
    assert "digest: " in info.stdout
    assert fl_audit("trace", "verify", recorded).returncode == 0
    done = fl_audit("trace", "export", recorded, tmp_path / "x", "--client", 1, "--what", "updates")
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in (tmp_path / "x").iterdir())
    assert names == [
        "round_0001_aggregate.npz",
        "round_0001_broadcast.npz",
        "round_0001_update_1.npz",
    ]
    with np.load(tmp_path / "x" / names[2], allow_pickle=False) as update:
        assert update["1.weight"].shape == (128, 64)
        assert update["1.weight"].any()


def test_a_damaged_trace_fails_verify_and_is_not_exported(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    path = tmp_path / "run" / "trace" / "round_0001" / "client_2.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    done = fl_audit("trace", "verify", tmp_path / "run")
    assert done.returncode == 1
    assert "client_2" in done.stdout
    assert fl_audit("trace", "export", tmp_path / "run", tmp_path / "x").returncode == 2
    assert not (tmp_path / "x").exists()


def test_a_run_without_its_last_round_fails_verify_and_is_not_attacked(
    recorded: Path, tmp_path: Path
) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    rounds = sorted((tmp_path / "run" / "trace").glob("round_*"))
    shutil.rmtree(rounds[-1])
    done = fl_audit("trace", "verify", tmp_path / "run")
    assert done.returncode == 1
    assert f"round {len(rounds)}: it is missing" in done.stdout
    done = fl_audit("attack", tmp_path / "run", "--attack", "loss_threshold")
    assert done.returncode == 2
    assert "last rounds are missing" in " ".join(done.stderr.split())

"""A scenario from end to end: repeatable, interruptible, and honest about what went wrong."""

from __future__ import annotations

import errno
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_audit.report.build import build_report
from fl_audit.report.model import load_report
from fl_audit.run_directory import RunDirectory
from simulations import client_app
from simulations.run import run_scenario
from simulations.scenario import parse_scenario

Train = Callable[..., tuple[float, int]]
SMALL: dict[str, Any] = {
    "federation": {"rounds": 2},
    "data": {"examples_per_client": 20},
    "audit": {"attacks": ["row_space", "cosine", "loss_threshold", "linear_inversion"]},
    "training": {"clients": {"4": {"algorithm": "fedsgd", "batch_size": 1}}},
}


def results(run: Path) -> dict[str, bytes]:
    files = (path for path in (run / "results").rglob("*") if path.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(files)}


def test_one_seed_gives_one_digest_and_the_same_results(tmp_path: Path) -> None:
    first = run_scenario(parse_scenario(SMALL), out=tmp_path / "a")
    second = run_scenario(parse_scenario(SMALL), out=tmp_path / "b")
    other = run_scenario(parse_scenario({**SMALL, "seed": 1}), out=tmp_path / "c")
    assert first.trace is not None
    assert second.trace is not None
    assert other.trace is not None
    assert first.trace.digest == second.trace.digest
    assert results(tmp_path / "a") == results(tmp_path / "b")
    assert other.trace.digest != first.trace.digest


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that draws from torch's global generator in every step."""

    def build(*, input_shape: list[int], num_classes: int) -> torch.nn.Module:
        size = math.prod(input_shape)
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(size, num_classes)
        )

    module = types.ModuleType("dropout_model")
    module.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dropout_model", module)
    return "dropout_model:build"


def test_a_model_with_dropout_is_repeatable_too(tmp_path: Path, dropout: str) -> None:
    """Whatever drew before, whether attacks run in between, and when it is resumed."""
    tables: dict[str, Any] = {
        **SMALL,
        "model": {"name": dropout},
        "audit": {"attacks": ["loss_threshold"]},
    }
    first = run_scenario(parse_scenario(tables), out=tmp_path / "a")
    torch.rand(7)
    again = run_scenario(parse_scenario(tables), out=tmp_path / "b")
    live = {**tables, "audit": {**tables["audit"], "every": 1}}
    audited = run_scenario(parse_scenario(live), out=tmp_path / "c")
    run = RunDirectory.open(tmp_path / "b")
    run.write_manifest(run.read_manifest().model_copy(update={"state": "interrupted"}))
    resumed = run_scenario(parse_scenario(tables), out=tmp_path / "b", resume=True)
    digests = [r.trace.digest for r in (first, again, audited, resumed) if r.trace is not None]
    assert digests == digests[:1] * 4


def test_a_worker_that_builds_the_data_in_its_first_call_draws_as_any_other(
    tmp_path: Path, dropout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As workers of Ray do; and data that draws from the process's generators is repeatable."""

    def make() -> tuple[np.ndarray, np.ndarray]:
        return np.random.random((400, 8)), np.random.randint(0, 4, 400)  # noqa: NPY002

    module = types.ModuleType("drawn_data")
    module.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "drawn_data", module)
    scenario = parse_scenario(
        {
            "federation": {"rounds": 2, "clients": 2},
            "data": {"name": "drawn_data:make", "examples_per_client": 20, "test": 20},
            "game": {"members": 20, "auxiliary": 0},
            "model": {"name": dropout},
        }
    )
    first = run_scenario(scenario, out=tmp_path / "a")
    real = client_app._state

    def fresh(*args: Any) -> Any:
        client_app.shared_state.cache_clear()
        return real(*args)

    monkeypatch.setattr(client_app, "_state", fresh)
    client_app.shared_state.cache_clear()
    again = run_scenario(scenario, out=tmp_path / "b")
    assert first.trace is not None
    assert again.trace is not None
    assert again.trace.digest == first.trace.digest


def test_the_saved_scenario_repeats_the_run(tmp_path: Path) -> None:
    first = run_scenario(parse_scenario(SMALL), out=tmp_path / "a")
    again = run_scenario(tmp_path / "a" / "scenario.toml", out=tmp_path / "b")
    assert first.trace is not None
    assert again.trace is not None
    assert first.trace.digest == again.trace.digest


def test_the_report_on_disk_is_the_one_returned(tmp_path: Path) -> None:
    report = run_scenario(parse_scenario(SMALL), out=tmp_path / "run")
    assert load_report(tmp_path / "run" / "report.json") == report
    assert report.run.state == "done"
    assert [u.round for u in report.run.utility] == [0, 1, 2]
    assert "<html" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("strategy", ["FedAvg", "FedAdam", "FedMedian", "QFedAvg"])
def test_strategies_by_name(strategy: str, tmp_path: Path) -> None:
    arguments = {"client_learning_rate": 0.1} if strategy == "QFedAvg" else {}
    tables = {**SMALL, "strategy": {"name": strategy, **arguments}}
    assert run_scenario(parse_scenario(tables), out=tmp_path / "run").run.problems == []


def test_a_defence_on_the_client_side_clips_what_is_sent(tmp_path: Path) -> None:
    defence = {
        "name": "DifferentialPrivacyClientSideFixedClipping",
        "noise_multiplier": 0.1,
        "clipping_norm": 0.01,
    }
    run_scenario(parse_scenario({**SMALL, "defence": defence}), out=tmp_path / "run")
    trace = RunDirectory.open(tmp_path / "run").open_trace()
    before, after = trace.arrays(1, "broadcast"), trace.arrays(1, 0)
    assert before is not None
    assert after is not None
    squares = [np.sum((after[k] - before[k]) ** 2) for k in before]  # type: ignore[operator]
    assert np.sqrt(np.sum(squares)) == pytest.approx(0.01, rel=1e-3)


def test_partial_participation_is_the_normal_case(tmp_path: Path) -> None:
    tables = {**SMALL, "federation": {"rounds": 4, "fraction": 0.4, "clients": 5}}
    report = run_scenario(parse_scenario(tables), out=tmp_path / "run")
    assert report.trace is not None
    assert [r.sampled for r in report.trace.rounds] == [2, 2, 2, 2]
    assert all(a.kind != "unavailable" for a in report.attacks)


def failing(when: Callable[[int], bool], error: BaseException) -> Train:
    """Local training that fails at some calls."""
    real, calls = client_app.train, [0]

    def train(*args: Any, **kwargs: Any) -> tuple[float, int]:
        calls[0] += 1
        if when(calls[0]):
            raise error
        return real(*args, **kwargs)

    return train


def test_a_client_that_raises_is_recorded_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        client_app, "train", failing(lambda n: n == 3, RuntimeError("disk on fire"))
    )
    report = run_scenario(parse_scenario(SMALL), out=tmp_path / "run")
    assert report.trace is not None
    assert [r.failed for r in report.trace.rounds] == [1, 0]
    assert [(p.round, p.where) for p in report.run.problems] == [(1, "client")]
    assert "client 2 failed: RuntimeError: disk on fire" in report.run.problems[0].message
    assert "disk on fire" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    row_space = next(a for a in report.attacks if a.label == "row_space")
    assert any("round 1, client 2" in note for note in row_space.notes)


def test_a_model_that_becomes_nan_is_said_and_does_not_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = client_app.train

    def train(model: Any, *args: Any, **kwargs: Any) -> tuple[float, int]:
        result = real(model, *args, **kwargs)
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        return result

    monkeypatch.setattr(client_app, "train", train)
    report = run_scenario(parse_scenario(SMALL), out=tmp_path / "run")
    assert {a.kind for a in report.attacks} <= {"unavailable", "reconstruction"}
    assert report.run.utility[-1].loss is None
    assert any("NaN" in p.message for p in report.run.problems)


def test_ctrl_c_keeps_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the second of two rounds: the first can be attacked and reported."""
    monkeypatch.setattr(client_app, "train", failing(lambda n: n == 8, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run_scenario(parse_scenario(SMALL), out=tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    assert run.read_manifest().state == "interrupted"
    assert run.open_trace().round(1).state == "aggregated"
    assert run.open_trace().verify() == []

    from attacks.audit import audit_run

    (result,) = audit_run(run.path, attacks=["row_space"])
    assert result.record.kind == "membership"
    report = build_report(run, not_tested=[])
    assert report.run.state == "interrupted"
    report.save(run.path)
    assert "interrupted" in (run.path / "report.html").read_text(encoding="utf-8")


def test_a_disk_that_is_full_to_the_end_of_the_rounds_leaves_no_run_that_seems_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the utility of round 1 on, nothing of run.json can be written; later, it can."""
    from fl_audit import run_directory
    from simulations import run as run_module

    undisturbed = run_scenario(parse_scenario(SMALL), out=tmp_path / "undisturbed")
    real_write, real_audit = run_directory.write_text, run_module.audit_run
    is_full = [False]

    def write(path: Path, text: str) -> None:
        is_full[0] = is_full[0] or '"round": 1,\n   "loss"' in text
        if is_full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_write(path, text)

    def audit(*args: Any, **kwargs: Any) -> Any:
        assert '"state": "running"' in (tmp_path / "run" / "run.json").read_text()
        monkeypatch.setattr(run_directory, "write_text", real_write)
        return real_audit(*args, **kwargs)

    monkeypatch.setattr(run_directory, "write_text", write)
    monkeypatch.setattr(run_module, "audit_run", audit)
    report = run_scenario(parse_scenario(SMALL), out=tmp_path / "run")
    assert is_full == [True]
    manifest = RunDirectory.open(tmp_path / "run").read_manifest()
    assert manifest == report.run
    assert manifest.state == "done"
    assert manifest.utility == undisturbed.run.utility
    assert [(p.where, p.message) for p in manifest.problems] == [
        (
            "run.json",
            "run.json could not be written for a while: [Errno 28] No space left on device",
        )
    ]
    assert report.trace == undisturbed.trace


def test_run_json_says_once_why_the_federation_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.serverapp.strategy import FedAvg

    def broken(*_: object) -> None:
        raise ZeroDivisionError("total weight\x1b[31m is zero")

    monkeypatch.setattr(FedAvg, "aggregate_train", broken)
    with pytest.raises(ZeroDivisionError):
        run_scenario(parse_scenario(SMALL), out=tmp_path / "run")
    manifest = RunDirectory.open(tmp_path / "run").read_manifest()
    assert manifest.state == "failed"
    assert [(p.where, p.round, p.message) for p in manifest.problems] == [
        ("federation", 1, "the rounds ended: ZeroDivisionError: total weight is zero")
    ]


def test_out_inside_a_flower_app_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app]\npublisher = 'me'\n")
    from fl_audit.errors import RunDirectoryError

    with pytest.raises(RunDirectoryError, match="shipped to every node"):
        run_scenario(parse_scenario(SMALL), out=tmp_path / "deep" / "run")

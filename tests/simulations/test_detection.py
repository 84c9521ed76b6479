"""After a federation with an adversary, the run says whether a client could have noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import simulations.run
from fl_audit.detection import Detection, read_detection
from fl_audit.run_directory import RunDirectory

Run = Callable[..., Path]


def of(path: Path) -> Detection:
    found = read_detection(RunDirectory.open(path))
    assert found is not None
    return found


def test_an_honest_run_has_no_detection(digits_run: Path) -> None:
    assert read_detection(RunDirectory.open(digits_run)) is None


def test_isolation_is_noticed_by_comparing_models_only(run_tables: Run) -> None:
    found = of(
        run_tables(
            "isolation",
            threat_model={"preset": "malicious-server"},
            adversary={"name": "isolation"},
        )
    )
    assert found.noticed
    assert not found.alone
    assert {f.round for f in found.findings} == {2, 3, 4, 5, 6}  # round 1: one model for all
    assert {f.client for f in found.findings} == set(range(5))


def test_a_relu_trap_is_noticed_by_its_biases(run_tables: Run) -> None:
    found = of(
        run_tables(
            "trap",
            federation={"rounds": 2},
            threat_model={"preset": "malicious-server"},
            adversary={"name": "relu_trap"},
        )
    )
    assert found.alone
    assert {f.check for f in found.findings} == {"row-out-of-scale"}
    assert {(f.round, f.client) for f in found.findings} == {
        (number, client) for number in (1, 2) for client in range(5)
    }


def test_a_model_thrown_far_is_noticed_by_its_loss(run_tables: Run) -> None:
    """A client that sends thirty times its update the other way."""
    found = of(
        run_tables(
            "flip",
            threat_model={"preset": "malicious-client"},
            adversary={"name": "sign_flip", "clients": [0], "strength": 30.0},
        )
    )
    assert found.acts_through == [0]
    assert found.watched == [1, 2, 3, 4]
    assert found.alone


@pytest.mark.parametrize("name", ["scaling", "poison"])
def test_quiet_adversaries_leave_a_file_that_says_so(name: str, run_tables: Run) -> None:
    found = of(
        run_tables(
            name,
            federation={"rounds": 2},
            threat_model={"preset": "malicious-client"},
            adversary={"name": name, "clients": [0]},
        )
    )
    assert found.adversary == name
    assert any("not that nothing was there" in note for note in found.notes)


def isolation(run_tables: Run, recording: dict[str, object]) -> Path:
    return run_tables(
        "recorded",
        federation={"rounds": 2},
        threat_model={"preset": "malicious-server"},
        adversary={"name": "isolation"},
        recording=recording,
    )


def test_what_was_kept_is_examined_and_the_rest_is_named(run_tables: Run) -> None:
    path = isolation(run_tables, {"record": "targets", "clients": [0, 1]})
    found = of(path)
    assert found.watched == [0, 1, 2, 3, 4]  # round 1: the broadcast, which was kept
    assert found.not_examined == {2: [2, 3, 4]}
    assert {(f.round, f.client) for f in found.findings} == {(2, 0), (2, 1)}
    text = (path / "report.html").read_text(encoding="utf-8")
    assert "3 received models in rounds 2" in text


def test_nothing_kept_is_not_examined_and_no_all_clear(run_tables: Run) -> None:
    path = isolation(run_tables, {"record": "none"})
    found = of(path)
    assert found.watched == found.rounds == []
    assert found.not_examined == {number: list(range(5)) for number in (1, 2)}
    text = (path / "report.html").read_text(encoding="utf-8")
    assert "<b>Not examined:</b>" in text
    assert "No check fired" not in text


def test_a_detection_that_fails_does_not_end_the_run(
    run_tables: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(simulations.run, "detect", fails)
    run = RunDirectory.open(isolation(run_tables, {"record": "all"}))
    manifest = run.read_manifest()
    assert manifest.state == "done"
    assert [p.where for p in manifest.problems] == ["detection"]
    assert "out of memory" in manifest.problems[0].message

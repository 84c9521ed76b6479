"""detection.json: written, read again, and refused when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_audit.detection import (
    CHECKS,
    Detection,
    DetectionFinding,
    read_detection,
    write_detection,
)
from fl_audit.errors import RunDirectoryError
from fl_audit.run_directory import RunDirectory


def detection(*checks: str) -> Detection:
    findings = [
        DetectionFinding(check=check, round=2, client=1, what="seen", value=2.0)  # type: ignore[arg-type]
        for check in checks
    ]
    return Detection(
        adversary="isolation", acts_through=[], watched=[0, 1], rounds=[1, 2], findings=findings
    )


def test_it_reads_what_it_wrote(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    assert read_detection(run) is None
    written = detection("models-differ", "loss-jump")
    write_detection(run, written)
    assert read_detection(run) == written
    assert run.detection_file.stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.detection_file.write_text('{"schema_version": 2}')
    with pytest.raises(RunDirectoryError, match=r"detection\.json"):
        read_detection(run)


def test_what_needs_a_channel_is_told_apart() -> None:
    assert not detection().noticed
    assert detection("models-differ").noticed
    assert not detection("models-differ").alone
    assert detection("models-differ", "loss-jump").alone
    assert detection("loss-jump", "loss-jump").counts() == {
        name: 2 * (name == "loss-jump") for name in CHECKS
    }

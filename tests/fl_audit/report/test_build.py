"""Building a report from a run directory, also from one that somebody tampered with."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_audit.errors import AuditError
from fl_audit.files import write_arrays
from fl_audit.report.build import build_report
from fl_audit.run_directory import RunDirectory


def pixels(png: str | None) -> np.ndarray:
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).astype(int)


@pytest.fixture
def copy(fedsgd_copy: Path) -> RunDirectory:
    return RunDirectory.open(fedsgd_copy)


def test_pictures_stand_beside_their_originals(copy: RunDirectory) -> None:
    images = build_report(copy, not_tested=[]).images["linear_inversion"]
    assert len(images) == 24
    for image in images:  # exact, so at most one of 256 levels apart; the guess is far off
        found, original, guess = (
            pixels(png)
            for png in (image.reconstruction_png, image.original_png, image.baseline_png)
        )
        assert np.abs(found - original).max() <= 1
        assert np.abs(guess - original).max() > 50


@pytest.mark.parametrize(
    "arrays",
    [
        {"round_x/client_y/reconstruction": np.zeros((1, 1, 8, 8))},
        {"../../reconstruction": np.zeros((1, 1, 8, 8))},
        {"round_0001/client_0/reconstruction": np.zeros(())},
        {"round_0001/client_0/reconstruction": np.zeros((1, 1, 0, 8))},
    ],
)
def test_odd_arrays_are_no_pictures(arrays: dict[str, np.ndarray], copy: RunDirectory) -> None:
    write_arrays(copy.results / "linear_inversion.safetensors", arrays)
    assert build_report(copy, not_tested=[]).images == {}


def test_nan_and_missing_originals_are_drawn_as_what_they_are(copy: RunDirectory) -> None:
    arrays = {
        "round_0001/client_0/reconstruction": np.full((2, 1, 8, 8), np.nan),
        "round_0001/client_0/original": np.zeros((1, 1, 8, 8)),
    }
    write_arrays(copy.results / "linear_inversion.safetensors", arrays)
    first, second = build_report(copy, not_tested=[]).images["linear_inversion"]
    assert first.original_png is not None
    assert second.original_png is None


@pytest.mark.parametrize("text", ["", "{", '{"kind": "membership"}', "[" * 5000])
def test_a_damaged_result_is_named(text: str, copy: RunDirectory) -> None:
    (copy.results / "linear_inversion.json").write_text(text)
    with pytest.raises(AuditError, match=r"results/linear_inversion.json"):
        build_report(copy, not_tested=[])


def test_missing_rounds_and_files_are_said(copy: RunDirectory) -> None:
    assert build_report(copy, not_tested=[]).run.problems == []
    (copy.trace / "round_0002" / "client_1.safetensors").unlink()
    shutil.rmtree(copy.trace / "round_0010")
    messages = [p.message for p in build_report(copy, not_tested=[]).run.problems]
    assert messages == [
        "round_0002/client_1.safetensors is missing",
        "the run ended with 10 rounds; 9 are here",
    ]

"""From a result's arrays to a page: pictures, values, traces, also from a hostile file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_audit.files import write_arrays
from fl_audit.report.build import build_report, read_results
from fl_audit.report.html import render_html
from fl_audit.report.model import AuditReport
from fl_audit.run_directory import RunDirectory

ReadPage = Callable[[str], Any]
PLACE = "round_0001/client_0"
RNG = np.random.default_rng(20_261_125)


@pytest.fixture
def copy(fedsgd_copy: Path) -> RunDirectory:
    run = RunDirectory.open(fedsgd_copy)
    (run.results / "label_counts.json").unlink()
    return run


def report_of(run: RunDirectory, arrays: dict[str, np.ndarray], **changes: Any) -> AuditReport:
    file = run.results / "linear_inversion.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    write_arrays(run.results / "linear_inversion.safetensors", arrays)
    return build_report(run, not_tested=[])


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).astype(int)


def test_pictures_have_their_figures_classes_and_way(copy: RunDirectory) -> None:
    found = RNG.random((2, 1, 8, 8))
    report = report_of(
        copy,
        {
            f"{PLACE}/reconstruction": found,
            f"{PLACE}/original": np.zeros((3, 1, 8, 8)),
            f"{PLACE}/psnr_db": np.array([31.25, 12.0]),
            f"{PLACE}/ssim": np.array([0.875, np.nan]),
            f"{PLACE}/labels": np.array([4, 5]),
            f"{PLACE}/original_labels": np.array([4, 6, 7]),
            f"{PLACE}/frames": np.linspace(0, 1, 100)[:, None, None, None, None]
            * np.ones((100, 2, 1, 8, 8)),
        },
    )
    first, second, third = report.images["linear_inversion"]
    assert (first.psnr_db, first.ssim, first.label, first.true_label) == (31.25, 0.875, 4, 4)
    assert (second.psnr_db, second.ssim, second.label, second.true_label) == (12, None, 5, 6)
    assert third.reconstruction_png is None  # an original that no claim was made about
    assert third.true_label == 7
    assert third.frames_png == []
    levels = [pixels(png)[0, 0] for png in first.frames_png]
    assert len(levels) == 8
    assert (levels[0], levels[-1]) == (0, 255)
    assert levels == sorted(levels)
    page = render_html(report)
    assert "<b>31.2</b> dB, SSIM <b>0.875</b>" in page.replace("\n", " ")
    assert "no claim" in page
    assert page.count('class="frames"') == 2


@pytest.mark.parametrize(
    ("settings", "controls", "words"),
    [
        ({"seat": 0}, [], "sum of the others’ updates"),
        ({"seat": None}, [2], "sum of the others’ updates"),
        ({}, [], "sum of the clients’ updates"),
    ],
)
def test_a_sum_says_whose_updates_are_in_it(
    settings: dict[str, Any], controls: list[int], words: str, copy: RunDirectory
) -> None:
    manifest = copy.read_manifest()
    record = manifest.threat_model.model_copy(update={"controls": controls})
    copy.write_manifest(manifest.model_copy(update={"threat_model": record}))
    arrays = {"round_0003/sum/reconstruction": np.zeros((1, 1, 8, 8))}
    report = report_of(copy, arrays, settings=settings)
    (image,) = report.images["linear_inversion"]
    assert (image.round, image.client) == (3, -1)
    assert f"round 3, {words}" in render_html(report)


def test_tokens_are_text_with_right_places_marked(copy: RunDirectory, read_page: ReadPage) -> None:
    arrays = {
        f"{PLACE}/reconstruction": np.array([[5.0, 6, 7, 0]]),
        f"{PLACE}/original": np.array([[5.0, 9, 7, 0], [1, 2, 3, 4]]),
        f"{PLACE}/right": np.array([[True, False, True, True]]),
        "baseline": np.array([8.0, 8, 8, 0]),
    }
    report = report_of(copy, arrays, contents="tokens")
    first, second = report.values["linear_inversion"]
    assert (first.original, first.found, first.guess) == ([5, 9, 7, 0], [5, 6, 7, 0], [8, 8, 8, 0])
    assert first.right == [True, False, True, True]
    assert second.found is None
    page = render_html(report)
    assert page.count("<mark>") == 3
    text = read_page(page).text
    assert "3 of 4 right" in text
    assert "original 5 9 7 0 reconstruction 5 6 7 0 guess 8 8 8 0" in text
    assert "original 1 2 3 4 reconstruction no claim" in text


def test_tables_show_values_and_how_often_columns_are_right(
    copy: RunDirectory, read_page: ReadPage
) -> None:
    share = {"value": 0.5, "low": 0.25, "high": 0.75, "confidence": 0.95, "n": 9}
    wide = np.arange(100.0)[None] / 8
    report = report_of(
        copy,
        {f"{PLACE}/reconstruction": wide},
        contents="table",
        columns=[{"column": 3, "found": share, "baseline": None}],
    )
    (row,) = report.values["linear_inversion"]
    assert row.found is not None
    assert (len(row.found), row.num_values, row.right) == (64, 100, [])
    text = read_page(render_html(report)).text
    assert "the first 64 of 100 values" in text
    assert "0 0.125 0.25" in text
    assert "3 0.500 95 %: 0.250 to 0.750" in text


def test_objectives_are_thinned_drawn_and_in_a_table(
    copy: RunDirectory, read_page: ReadPage
) -> None:
    values = np.geomspace(1, 1e-8, 2000)
    values[3] = np.nan
    report = report_of(
        copy,
        {
            f"{PLACE}/objective": values,
            "round_0002/client_0/objective": np.array([2.0, -1.0]),
            "round_0004/client_0/objective": np.array([2.5]),
            "round_0003/client_0/objective": np.array([np.inf]),
            "round_0003/client_1/objective": np.ones((2, 2)),
        },
    )
    traces = report.objectives["linear_inversion"]
    assert [(t.round, t.client) for t in traces] == [(1, 0), (2, 0), (4, 0)]
    assert len(traces[0].steps) == 200
    assert (traces[0].steps[0], traces[0].steps[-1], traces[0].values[-1]) == (0, 1999, 1e-8)
    assert 3 not in traces[0].steps
    page = render_html(report)
    assert page.count('figure class="card objective"') == 1
    text = read_page(page).text
    assert "round 1, client 0 1 (0)" in text
    assert "1e−08 (1999)" in text
    assert render_html(report) == page


@pytest.mark.parametrize("contents", ["numbers", "tokens"])
@pytest.mark.parametrize(
    "arrays",
    [
        {"round_x/client_y/objective": np.zeros(3)},
        {f"{PLACE}/objective": np.zeros(3, dtype=np.bool_)},
        {f"{PLACE}/objective": np.zeros(())},
        {f"{PLACE}/reconstruction": np.zeros(())},
        {f"{PLACE}/reconstruction": np.zeros((0, 1, 8, 8))},
    ],
)
def test_odd_arrays_show_nothing(
    arrays: dict[str, np.ndarray], contents: str, copy: RunDirectory
) -> None:
    report = report_of(copy, arrays, contents=contents)
    assert (report.images, report.values, report.objectives) == ({}, {}, {})


def test_odd_companions_are_left_out(copy: RunDirectory) -> None:
    report = report_of(
        copy,
        {
            f"{PLACE}/reconstruction": np.zeros((1, 1, 8, 8)),
            f"{PLACE}/psnr_db": np.array([[1.0]]),
            f"{PLACE}/ssim": np.array([1]),
            f"{PLACE}/labels": np.array([1.5]),
            f"{PLACE}/original_labels": np.zeros(0, dtype=np.int64),
            f"{PLACE}/frames": np.zeros(4),
        },
    )
    (image,) = report.images["linear_inversion"]
    assert image.psnr_db is image.ssim is image.label is image.true_label is None
    assert image.frames_png == []
    render_html(report)


def test_a_seat_s_result_stands_right_after_the_server_s(copy: RunDirectory) -> None:
    table = json.loads((copy.results / "linear_inversion.json").read_text())
    for label in ("a", "local_linear_inversion", "local_a", "m"):
        content = json.dumps(table | {"label": label, "arrays_file": None})
        (copy.results / f"{label}.json").write_text(content)
    labels = [record.label for record in read_results(copy)]
    assert labels == ["a", "local_a", "linear_inversion", "local_linear_inversion", "m"]
    page = render_html(build_report(copy, not_tested=[]))
    assert sorted(labels, key=lambda label: page.index(f">{label}</span>")) == labels


def test_theory_stands_beside_what_was_measured(copy: RunDirectory, read_page: ReadPage) -> None:
    report = report_of(copy, {}, expected={"exact": 0.896, "ssim_of_x": 0.25})
    text = read_page(render_html(report)).text
    assert "theory: 0.896" in text
    assert "ssim_of_x refused: there is no truth to compare with; theory: 0.25" in text

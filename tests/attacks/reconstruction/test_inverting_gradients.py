"""Inverting Gradients: the classic, from a recorded round to pictures in the report."""

from __future__ import annotations

import shutil
from pathlib import Path

from typer.testing import CliRunner

from fl_audit.cli.main import app
from tests.attacks.reconstruction.test_gradient_inversion import attacked


def test_it_beats_a_guess(inversion_run: Path) -> None:
    """Without its total variation, which blurs digits of 8 x 8 pixels."""
    settings = {"iterations": 300, "most_updates": 4, "total_variation": 0.0}
    record = attacked(inversion_run, "inverting_gradients", **settings).record
    assert record.metrics["psnr_db"].low > record.baseline["psnr_db"].high


def test_the_command_line_puts_pictures_into_the_report(
    inversion_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(inversion_run, run)
    command = ["attack", str(run), "--attack", "inverting_gradients"]
    options = ["--set", "most_updates=2", "--set", "iterations=60"]
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 0, done.output
    page = (run / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') >= 4  # originals and reconstructions
    pictures = sorted((run / "results" / "inverting_gradients").glob("*.png"))
    assert pictures
    assert all(path.stat().st_mode & 0o077 == 0 for path in pictures)

"""DLG: labels are found together with the inputs."""

from __future__ import annotations

from pathlib import Path

from tests.attacks.reconstruction.test_gradient_inversion import attacked


def test_labels_come_out_of_the_search(inversion_run: Path) -> None:
    record = attacked(inversion_run, "dlg", iterations=200, most_updates=3).record
    assert record.settings["labels"] == "joint"
    assert record.metrics["label_accuracy"].value == 1.0
    assert record.metrics["psnr_db"].value > record.baseline["psnr_db"].value

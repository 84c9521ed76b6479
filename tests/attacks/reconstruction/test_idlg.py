"""iDLG: the label is read off first."""

from __future__ import annotations

from pathlib import Path

from tests.attacks.reconstruction.test_gradient_inversion import attacked, notes


def test_labels_come_from_the_last_layer(inversion_run: Path) -> None:
    result = attacked(inversion_run, "idlg", iterations=200, most_updates=3)
    assert result.record.metrics["label_accuracy"].value == 1.0
    assert "The softmax is that of" in notes(result)
    assert result.record.metrics["psnr_db"].value > 20

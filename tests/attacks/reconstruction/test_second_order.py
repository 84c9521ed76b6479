"""Second order: exact recovery from what a real client sent in float32."""

from __future__ import annotations

from pathlib import Path

from tests.attacks.reconstruction.test_gradient_inversion import attacked, notes


def test_refinement_recovers_digits_exactly(inversion_run: Path) -> None:
    """Rounding of float32 weights is the only limit: 60 dB is an error of 1e-3 in a pixel."""
    rough = attacked(inversion_run, iterations=60, refine=0, most_updates=3).record
    result = attacked(inversion_run, iterations=60, refine=12, most_updates=3)
    fine = result.record
    assert fine.metrics["psnr_db"].value > rough.metrics["psnr_db"].value + 10
    assert fine.metrics["psnr_db"].value > 45
    assert "Levenberg-Marquardt" in notes(result)


def test_above_the_limit_the_jacobian_is_not_formed(inversion_run: Path) -> None:
    dense = attacked(inversion_run, iterations=60, refine=4, most_updates=1)
    free = attacked(inversion_run, iterations=60, refine=4, most_updates=1, dense_limit=10)
    assert "without forming the Jacobian, to spare memory" in notes(free)
    assert (
        abs(
            free.record.metrics["psnr_db"].value - dense.record.metrics["psnr_db"].value
            if "psnr_db" in dense.record.metrics
            else 0.0
        )
        < 10
    )

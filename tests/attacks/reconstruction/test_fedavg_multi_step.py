"""FedAvg: several local steps unrolled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.reconstruction.test_gradient_inversion import attacked, notes


@pytest.fixture(scope="module")
def four_steps(run_tables: Callable[..., Path]) -> Path:
    """Two FedAvg clients with four digits each: four steps of one digit at a high rate."""
    return run_tables(
        "four-steps",
        federation={"clients": 2, "rounds": 2},
        data={"examples_per_client": 4},
        game={"members": 4},
        model={"name": "lenet_zhu"},
        training={"algorithm": "fedavg", "local_epochs": 1, "batch_size": 1, "learning_rate": 0.5},
    )


def test_unrolling_beats_reading_the_update_as_one_gradient(four_steps: Path) -> None:
    unrolled = attacked(four_steps, "fedavg_multi_step", iterations=300)
    read = attacked(four_steps, "fedavg_multi_step", iterations=300, unroll=False)
    better, worse = (r.record.metrics["psnr_db"].value for r in (unrolled, read))
    assert better > worse
    assert "re-simulated on auxiliary records, 4 local steps" in notes(read)

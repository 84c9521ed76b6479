"""FedAvg: several local steps unrolled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attacks.reconstruction.optimisation.orders import label_orders
from attacks.reconstruction.optimisation.plan import LocalPlan
from fl_audit.local_training import LocalTraining
from tests.attacks.reconstruction.test_gradient_inversion import attacked, notes


@pytest.fixture(scope="module")
def three_steps(run_tables: Callable[..., Path]) -> Path:
    """Two FedAvg clients with three digits each: three steps of one digit at a high rate."""
    return run_tables(
        "three-steps",
        federation={"clients": 2, "rounds": 1},
        data={"examples_per_client": 3},
        game={"members": 3},
        model={"name": "lenet_zhu"},
        training={"algorithm": "fedavg", "local_epochs": 1, "batch_size": 1, "learning_rate": 0.5},
    )


def test_unrolling_beats_reading_the_update_as_one_gradient(three_steps: Path) -> None:
    unrolled = attacked(three_steps, "fedavg_multi_step", iterations=200)
    read = attacked(three_steps, "fedavg_multi_step", iterations=200, unroll=False)
    better, worse = (r.record.metrics["psnr_db"].value for r in (unrolled, read))
    assert better > worse
    assert "re-simulated on auxiliary records, 3 local steps" in notes(read)
    assert "orders of labels were tried" in notes(unrolled)


def test_orders_of_labels_are_all_tried_once() -> None:
    """Within a step the order plays no part: 4 labels in steps of 2 have 6 orders."""
    training = LocalTraining(local_epochs=1, batch_size=2)
    plan = LocalPlan(training, 0.1, 4)
    found = label_orders(plan, torch.tensor([1, 2, 3, 4]), torch.Generator().manual_seed(0))
    assert len(found) == 6
    assert found[0].tolist() == [1, 2, 3, 4]  # the given one first
    assert len({tuple(sorted(f[:2].tolist())) for f in found}) == 6


def test_two_epochs_have_orders_of_their_own() -> None:
    plan = LocalPlan(LocalTraining(local_epochs=2, batch_size=1), 0.1, 3, orders=5)
    found = label_orders(plan, torch.tensor([1, 2, 3]), torch.Generator().manual_seed(0))
    assert len(found) == 5
    assert all(sorted(f[:3].tolist()) == sorted(f[3:].tolist()) == [1, 2, 3] for f in found)

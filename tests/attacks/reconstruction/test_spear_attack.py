"""SPEAR on recorded rounds: batches, sums, several steps, and doubt where records can hide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attacks.audit import audit_run
from attacks.reconstruction.observed import Observed
from attacks.reconstruction.spear_attack import hides_a_record
from fl_audit.local_training import LocalTraining
from fl_audit.results import ReconstructionResult


@pytest.fixture(scope="module")
def batches_run(run_tables: Callable[..., Path]) -> Path:
    """Three FedSGD clients with four digits a round."""
    return run_tables(
        "batches",
        federation={"clients": 3, "rounds": 3},
        model={"name": "mlp", "hidden": [200, 100]},
        training={"algorithm": "fedsgd", "batch_size": 4},
    )


@pytest.mark.parametrize(("name", "size"), [("spear", 9), ("local_spear", 3)])
def test_batches_and_sums_come_back_from_flower_rounds(
    name: str, size: int, batches_run: Path
) -> None:
    (result,) = audit_run(batches_run, attacks=[{"name": name, "max_batch": 12}])
    assert isinstance(result, ReconstructionResult), result.record
    assert result.record.num_targets == size
    assert f"36 inputs from {size} of {size} updates are confirmed." in result.record.notes
    assert result.record.metrics["recovered"].value == 1.0
    assert result.record.metrics["psnr_db"].value > 100  # float32 weights round the update


def test_epochs_over_few_records_come_back_too(run_tables: Callable[..., Path]) -> None:
    """Two local epochs over six records, in batches of three: four steps, one low rank."""
    run = run_tables(
        "epochs",
        federation={"clients": 3, "rounds": 2},
        data={"examples_per_client": 6},
        game={"members": 6},
        model={"name": "mlp", "hidden": [200, 100]},
        training={"local_epochs": 2, "batch_size": 3, "learning_rate": 0.01},
    )
    (result,) = audit_run(run, attacks=["spear"])
    assert isinstance(result, ReconstructionResult), result.record
    assert result.record.num_targets >= 5  # where a neuron's signals are too small, none is sure
    assert result.record.metrics["recovered"].value > 0.8
    assert result.record.metrics["psnr_db"].value > 90


def test_updates_of_many_steps_on_many_records_are_left_alone(digits_run: Path) -> None:
    (result,) = audit_run(digits_run, attacks=["spear"])
    assert isinstance(result, ReconstructionResult), result.record
    assert result.record.num_targets == 0
    assert "0 inputs from 0 of 30 updates are confirmed." in result.record.notes


@pytest.mark.parametrize(
    ("classes", "records", "rank", "hides"),
    [(2, 8, 7, True), (2, 8, 8, False), (3, 8, 7, False), (2, None, 4, False), (2, None, 3, True)],
)
def test_records_can_hide_in_nets_of_two_classes(
    classes: int, records: float | None, rank: int, hides: bool
) -> None:
    """Without a count, a batch of FedSGD is taken to be full: 4 records."""
    local = LocalTraining(algorithm="fedsgd", batch_size=4)
    update = {"weight": np.ones((classes, 5)), "bias": np.ones(classes)}
    seen = Observed(1, 0, (0,), {}, update, local, records)
    assert hides_a_record(seen, rank) is hides


def test_a_hidden_record_leaves_nothing_sure(run_tables: Callable[..., Path]) -> None:
    """Two classes and more records than are told apart: found, and counted as tried in vain."""
    run = run_tables(
        "two-classes",
        federation={"clients": 2, "rounds": 6},
        data={"name": "breast-cancer"},
        game={"members": 20},
        model={"name": "mlp", "hidden": [64]},
        training={"algorithm": "fedsgd", "batch_size": 8},
    )
    (result,) = audit_run(run, attacks=["spear"])
    assert isinstance(result, ReconstructionResult), result.record
    record = result.record
    assert record.num_tried == 12
    claimed = [len(a) for key, a in result.arrays.items() if key.endswith("/reconstruction")]
    assert all(size <= 8 for size in claimed)
    assert record.num_targets == len(claimed)
    if claimed:
        assert record.metrics["psnr_db"].low > 60

"""Local training: known numbers of steps."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fl_audit.local_training import LocalTraining, LocalTrainings


@pytest.mark.parametrize(
    ("num_examples", "epochs", "batch", "steps"),
    [(40, 2, 20, 4), (41, 2, 20, 6), (1, 3, 20, 3), (20, 1, 1, 20)],
)
def test_fedavg_steps(num_examples: int, epochs: int, batch: int, steps: int) -> None:
    assert LocalTraining(local_epochs=epochs, batch_size=batch).steps(num_examples) == steps


def test_fedsgd_takes_one_step() -> None:
    assert LocalTraining(algorithm="fedsgd", local_epochs=5, batch_size=1).steps(40) == 1


def test_each_client_has_its_own_and_the_others_the_default() -> None:
    slow = LocalTraining(learning_rate=0.01)
    read = LocalTrainings.model_validate_json(LocalTrainings(clients={3: slow}).model_dump_json())
    assert (read.of(3), read.of(4)) == (slow, LocalTraining())


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"local_epochs": 0},
        {"batch_size": 0},
        {"algorithm": "fedprox"},
    ],
    ids=str,
)
def test_impossible_training_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LocalTraining.model_validate(change)

"""Poison: copies of the targets under a wrong label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attacks.federated.poison import poison_records, wrong_labels
from attacks.federated.rounds import record_losses
from fl_audit.errors import InputError
from fl_audit.game import read_game, read_truth
from fl_audit.records import Records
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS
from fl_audit.trace import TraceView

SEED = 20_261_125


def targets(n: int = 6, classes: int = 3) -> Records:
    rng = np.random.default_rng(SEED)
    inputs = rng.random((n, 4)).astype(np.float32)
    return Records(np.arange(n) + 10, inputs, np.arange(n) % classes)


def test_every_target_has_its_copies_under_one_wrong_label() -> None:
    given = targets()
    for rule in ("next", "random"):
        rng = np.random.default_rng(SEED)
        poison = poison_records(given, copies=3, rule=rule, num_classes=3, rng=rng)  # type: ignore[arg-type]
        np.testing.assert_array_equal(poison.ids, np.repeat(given.ids, 3))
        np.testing.assert_array_equal(poison.inputs, np.repeat(given.inputs, 3, axis=0))
        labels = poison.labels.reshape(6, 3)
        assert (labels == labels[:, :1]).all()
        assert (labels[:, 0] != given.labels).all()
        assert labels.min() >= 0
        assert labels.max() <= 2


def test_next_is_the_class_after_and_true_is_replication() -> None:
    labels = np.array([0, 1, 2])
    assert wrong_labels(labels, rule="next", num_classes=3).tolist() == [1, 2, 0]
    assert wrong_labels(labels, rule="true", num_classes=3).tolist() == [0, 1, 2]


def test_random_labels_repeat_with_the_generator() -> None:
    labels = np.arange(50) % 3
    one, two = (
        wrong_labels(labels, rule="random", num_classes=3, rng=np.random.default_rng(1))
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, two)


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(InputError, match=r"poison\.copies"):
        poison_records(targets(), copies=0, rule="next", num_classes=3)
    with pytest.raises(InputError, match="none is wrong"):
        poison_records(targets(), copies=1, rule="next", num_classes=1)
    with pytest.raises(InputError, match="needs a generator"):
        poison_records(targets(), copies=1, rule="random", num_classes=3)


def test_a_poisoned_model_is_worse_on_its_targets(run_tables: Callable[..., Path]) -> None:
    """The mechanism, by the final model's loss on non-members. Whether it tells members apart
    better is measured in docs/malicious_clients.md; it does not on fresh seeds."""
    clean, poisoned = (
        _loss(run_tables("poison", **_tables(0), **more))
        for more in ({}, {"adversary": {"name": "poison", "clients": [0]}})
    )
    assert poisoned > 1.2 * clean


def _tables(seed: int) -> dict[str, object]:
    return {
        "seed": seed,
        "federation": {"rounds": 8},
        "training": {"local_epochs": 10},
        "game": {"clients": [1, 2, 3, 4], "members": 60},
        "threat_model": {"preset": "malicious-client"},
    }


def _loss(path: Path) -> float:
    """Mean loss of the final model on candidates that nobody trained on, nats."""
    run = RunDirectory.open(path)
    spec = run.read_manifest().model
    assert spec is not None
    build = spec.builder(trusted=False)
    view = TraceView(run.open_trace(), PRESETS["malicious-client"], model=build)
    losses = record_losses(build(), view.final_model(), read_game(run).candidates)
    return float(losses[~read_truth(run).is_member].mean())

"""Inversion of recorded updates: tasks, labels, seats, checks before and after the search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attacks.audit import audit_run
from attacks.reconstruction.inversion_settings import preset_settings
from attacks.reconstruction.inversion_tasks import task_of
from attacks.reconstruction.observed import observed
from attacks.reconstruction.optimisation.engine import invert_gradients
from attacks.reconstruction.optimisation.presets import preset
from attacks.reconstruction.optimisation.simulation import OneGradient
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.game import read_game, read_truth
from fl_audit.local_training import LocalTraining
from fl_audit.results import ReconstructionResult, UnavailableRecord
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import threat_model
from fl_audit.trace import TraceView
from simulations.data.builtin import digits
from simulations.models import lenet_zhu

SEED = 20_261_125


def attacked(run: Path, name: str = "second_order", **settings: Any) -> ReconstructionResult:
    """The attack's result on a run."""
    quick = {"iterations": 200, "refine": 0, "most_updates": 2} if "order" in name else {}
    (result,) = audit_run(run, attacks=[{"name": name, **quick, **settings}])
    assert isinstance(result, ReconstructionResult), result.record
    return result


def notes(result: ReconstructionResult) -> str:
    """All notes in one."""
    return " ".join(result.record.notes)


def test_a_gradient_of_nothing_gives_no_better_than_a_guess() -> None:
    """Null: the gradient is noise of the right shapes, so what comes back resembles no digit.

    Deterministic for the seed; over fresh seeds the mean of 12 would have to be 4 standard errors
    off (P < 1e-6 with a margin of 3 dB).
    """
    records = digits().records
    rng = np.random.default_rng(SEED)
    torch.manual_seed(0)
    model = lenet_zhu(input_shape=(1, 8, 8), num_classes=10).eval()
    mean = records.inputs.mean(axis=0)
    found, guessed = [], []
    for place, row in enumerate(rng.permutation(len(records))[:12]):
        noise = {n: rng.normal(size=tuple(p.shape)) for n, p in model.named_parameters()}
        result = invert_gradients(
            model,
            noise,
            input_shape=(1, 8, 8),
            labels=[int(records.labels[row])],
            config=preset("second_order", iterations=60, refine=0),
            generator=torch.Generator().manual_seed(place),
        )
        found.append(np.mean((result.inputs[0] - records.inputs[row]) ** 2))
        guessed.append(np.mean((mean - records.inputs[row]) ** 2))
        assert result.objective > 0.5  # and the attacker can tell
    assert np.mean(found) > 2 * np.mean(guessed)


def test_what_is_seen_from_a_seat_is_the_sum_of_the_others(inversion_run: Path) -> None:
    result = attacked(inversion_run, "local_second_order", seat=0, most_updates=1)
    record = result.record
    assert record.num_targets == 1
    assert "From client 0's seat: 2 to 2 clients in each sum." in record.notes
    (found,) = [a for key, a in result.arrays.items() if key.endswith("reconstruction")]
    assert len(found) == 2  # both of the others' digits


def test_labels_are_granted_by_the_threat_model_only(run_tables: Callable[..., Path]) -> None:
    run = run_tables(
        "no-labels",
        federation={"clients": 2, "rounds": 1},
        game={"members": 4},
        model={"name": "lenet_zhu"},
        training={"algorithm": "fedsgd", "batch_size": 1},
        threat_model={"knows": ["local-training", "example-counts", "auxiliary-data"]},
    )
    with pytest.raises(Exception, match="labels"):
        attacked(run, labels="known")
    assert attacked(run).record.metrics["label_accuracy"].value == 1.0  # inferred


def test_known_labels_are_the_batch_s_own(inversion_run: Path) -> None:
    result = attacked(inversion_run, labels="known", refine=0, iterations=5)
    assert "labels" in result.record.knows
    targets = read_truth(RunDirectory.open(inversion_run)).targets
    for client in (0, 1):
        target = targets.find(1, client)
        assert target is not None
        found = result.arrays[f"round_0001/client_{client}/labels"]
        assert found.tolist() == target.labels.tolist()


def test_larger_batches_are_left_alone_and_said_so(digits_run: Path) -> None:
    (result,) = audit_run(digits_run, attacks=[{"name": "second_order", "max_batch": 4}])
    assert isinstance(result.record, UnavailableRecord)
    assert "is above max_batch = 4" in result.record.reason


def test_hopeless_searches_are_not_begun(run_tables: Callable[..., Path]) -> None:
    run = run_tables(
        "hopeless",
        federation={"clients": 2, "rounds": 1},
        game={"members": 4},
        model={"name": "mlp", "hidden": [2]},
        training={"algorithm": "fedsgd", "batch_size": 8},
    )
    result = attacked(run)
    assert result.record.num_targets == 0
    assert "Reconstruction is hopeless: " in notes(result)
    assert attacked(run, hopeless_too=True, iterations=5).record.num_targets == 2


def test_an_unknown_batch_size_is_assumed_and_said_so(run_tables: Callable[..., Path]) -> None:
    run = run_tables(
        "no-counts",
        federation={"clients": 2, "rounds": 1},
        game={"members": 4},
        model={"name": "lenet_zhu"},
        training={"algorithm": "fedsgd", "batch_size": 1},
        threat_model={"knows": ["local-training", "auxiliary-data"]},
    )
    result = attacked(run)
    assert result.record.num_targets == 2
    assert "batches are taken to be full: 1 records a client" in notes(result)


def test_without_counts_several_steps_are_refused_but_for_a_given_size(
    run_tables: Callable[..., Path],
) -> None:
    run = run_tables(
        "no-counts-epochs",
        federation={"clients": 2, "rounds": 1},
        data={"examples_per_client": 3},
        game={"members": 3},
        model={"name": "lenet_zhu"},
        training={"local_epochs": 1, "batch_size": 3},
        threat_model={"knows": ["local-training", "auxiliary-data"]},
    )
    assert attacked(run, batch_size=3, iterations=20).record.num_targets == 2


def test_a_curious_client_subtracts_its_own(run_tables: Callable[..., Path]) -> None:
    run = run_tables(
        "curious-client",
        federation={"clients": 3, "rounds": 2},
        game={"members": 4},
        model={"name": "lenet_zhu"},
        training={"algorithm": "fedsgd", "batch_size": 1},
        threat_model={"preset": "curious-client"},
    )
    own = attacked(run, "local_second_order", seat=2)
    assert "From client 2's seat: 2 to 2 clients in each sum." in notes(own)
    every = attacked(run, "local_second_order")
    assert "The adversary's own update is among them" in notes(every)


def test_without_local_training_nothing_is_assumed(run_tables: Callable[..., Path]) -> None:
    from fl_audit.errors import ObservationError

    run = run_tables(
        "no-training",
        federation={"clients": 2, "rounds": 1},
        game={"members": 4},
        threat_model={"knows": ["auxiliary-data"]},
    )
    with pytest.raises(ObservationError, match="local-training"):
        audit_run(run, attacks=["second_order"])


def test_bad_layers_are_named(inversion_run: Path) -> None:
    settings = {"name": "second_order", "drop_layers": ["7.wieght"]}
    (result,) = audit_run(inversion_run, attacks=[settings])
    assert isinstance(result.record, UnavailableRecord)
    assert "drop_layers = '7.wieght'" in result.record.reason


def test_frames_and_objective_are_kept(inversion_run: Path) -> None:
    result = attacked(inversion_run, frames=4, most_updates=1)
    keys = " ".join(result.arrays)
    assert "objective" in keys
    assert "frames" in keys


def test_same_seed_same_bytes(inversion_run: Path) -> None:
    first, second = (attacked(inversion_run, most_updates=1).arrays for _ in range(2))
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_the_recorded_update_is_checked_against_its_true_records(inversion_run: Path) -> None:
    result = attacked(inversion_run, most_updates=1)
    assert "played again on its true records" in notes(result)


def test_a_model_that_refuses_the_shape_is_named() -> None:
    model = lenet_zhu(input_shape=(1, 8, 8), num_classes=10)
    names = tuple(n for n, _ in model.named_parameters())
    gradient = OneGradient(model, names)(torch.rand(1, 1, 8, 8), torch.tensor([1]))
    with pytest.raises(InputError, match="refuses 1 inputs of this shape"):
        invert_gradients(
            model,
            dict(zip(names, gradient, strict=True)),
            input_shape=(3, 8, 8),
            labels=[1],
            generator=torch.Generator().manual_seed(0),
        )


def test_unavailable_is_not_silent(trap_run: Path) -> None:
    """A run whose model the attack cannot differentiate twice, or has no records: it says why."""
    (result,) = audit_run(trap_run, attacks=[{"name": "second_order", "clients": [99]}])
    assert isinstance(result.record, UnavailableRecord)
    assert "this client sent no usable update" in result.record.reason


def test_steps_behind_a_sum_are_those_of_each_client(run_tables: Callable[..., Path]) -> None:
    """Two clients with three records each take two steps, not the four of one with all six."""
    out = run_tables(
        "sum-of-epochs",
        federation={"clients": 2, "rounds": 1},
        data={"examples_per_client": 3},
        game={"members": 4},
        model={"name": "lenet_zhu"},
        training={"local_epochs": 2, "batch_size": 3},
    )
    run = RunDirectory.open(out)
    manifest = run.read_manifest()
    assert manifest.model is not None
    view = TraceView(
        run.open_trace(),
        threat_model("curious-server"),
        model=manifest.model.builder(trusted=True),
        local_training=manifest.local_training,
    )
    settings = preset_settings("second_order")()
    given = AttackInput(
        view, settings, np.random.default_rng(0), auxiliary=read_game(run).auxiliary
    )
    (seen,) = observed(given, "sum")
    assert seen.num_examples == 6
    task = task_of(given, [seen])
    assert task.work is not None
    assert (task.work.num_examples, task.work.steps) == (3, 2)
    name = "7.weight"
    rate = LocalTraining().learning_rate
    np.testing.assert_allclose(task.gradients[0][name], -seen.update[name] / (2 * rate))
    assert "2 local steps moved the weights" in notes(attacked(out, "local_second_order"))


def test_updates_that_were_searched_are_counted_as_tried(inversion_run: Path) -> None:
    record = attacked(inversion_run, most_updates=2).record
    assert (record.num_tried, record.num_targets) == (2, 2)

"""Label counts of recorded updates: single examples, batches, clients of several steps, sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attacks.federated.rounds import SUM
from attacks.reconstruction.label_attack import (
    ATTACK,
    LOCAL_ATTACK,
    LabelCountSettings,
    run_label_counts,
)
from attacks.reconstruction.resimulation import simulated_update
from fl_audit.attack_spec import AttackInput, Reconstructions
from fl_audit.errors import InputError
from fl_audit.factories import ModelSpec
from fl_audit.files import Arrays
from fl_audit.local_training import LocalTraining, LocalTrainings
from fl_audit.records import Records
from fl_audit.results import ReconstructionResult
from fl_audit.threat_model import PRESETS, Knowledge, ThreatModel
from fl_audit.trace import Reply, Trace, TraceView, TraceWriter

SEED = 20_261_126
CLASSES = 4
MIXES = [[7, 1, 0, 4], [0, 0, 12, 0], [3, 3, 3, 3]]
SPEC = ModelSpec(
    factory="simulations.models:mlp",
    settings={"input_shape": [5], "num_classes": CLASSES, "hidden": [8]},
)
SERVER = PRESETS["curious-server"]
FEDAVG = LocalTraining(learning_rate=0.02, batch_size=4)


def records(counts: list[int], seed: int) -> Records:
    labels = np.repeat(np.arange(CLASSES), counts)
    inputs = np.random.default_rng(seed).random((len(labels), 5), dtype=np.float32)
    return Records(np.arange(len(labels)), inputs, labels)


DATA = [records(mix, SEED + i) for i, mix in enumerate(MIXES)]
AUXILIARY = records([25] * CLASSES, SEED + 50)


def given(
    folder: Path,
    training: LocalTraining,
    who: ThreatModel = SERVER,
    *,
    claimed: list[float] | None = None,
    trainings: dict[int, LocalTraining] | None = None,
    **settings: Any,
) -> AttackInput:
    """A recorded round of three clients that train as said, and claim so many examples."""
    torch.manual_seed(SEED)
    module: Any = SPEC.builder(trusted=False)()
    model = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    replies: list[Arrays] = []
    for data in DATA:
        update = simulated_update(
            module,
            torch.from_numpy(data.inputs),
            torch.from_numpy(data.labels),
            training,
            training.learning_rate,
            rng=np.random.default_rng(SEED),
        )
        replies.append({n: (model[n] + update[n].numpy()).astype(np.float32) for n in model})
    writer = TraceWriter(folder)
    writer.begin_round(1, model, [0, 1, 2])
    counts = claimed or [float(len(data)) for data in DATA]
    writer.add_replies(1, [Reply(i, r, {"num-examples": counts[i]}) for i, r in enumerate(replies)])
    mean = {
        n: np.asarray(sum(r[n].astype(np.float64) for r in replies) / 3, dtype=np.float32)
        for n in model
    }
    writer.end_round(1, {**mean}, {})
    view = TraceView(
        Trace.open(folder),
        who,
        model=SPEC.builder(trusted=False),
        local_training=LocalTrainings(default=training, clients=trainings or {}),
    )
    chosen = LabelCountSettings(**settings)
    rng = np.random.default_rng(SEED)
    return AttackInput(view=view, settings=chosen, rng=rng, auxiliary=AUXILIARY)


def counts_of(found: Reconstructions) -> list[list[int]]:
    assert all(claim.label_counts is not None for claim in found.targets)
    return [claim.label_counts.tolist() for claim in found.targets]  # type: ignore[union-attr]


def metrics(run: Path, **table: Any) -> dict[str, Any]:
    from attacks.audit import audit_run

    (result,) = audit_run(run, attacks=[{"name": "label_counts", **table}])
    assert isinstance(result, ReconstructionResult), result.record
    return {"targets": result.record.num_targets, **result.record.metrics}


@pytest.mark.parametrize("settings", [{}, {"proxies": "noise"}, {"method": "idlg"}])
def test_fifty_single_labels_are_all_found(fedsgd_run: Path, settings: dict[str, Any]) -> None:
    found = metrics(fedsgd_run, **settings)
    assert found["targets"] == 50
    assert found["label_overlap"].value == 1.0
    assert found["label_overlap"].n == 50


def test_rounds_without_a_learning_rate_do_not_take_the_others_with_them(
    run_tables: Callable[..., Path],
) -> None:
    run = run_tables(
        "decayed",
        federation={"rounds": 4},
        training={"algorithm": "fedsgd", "schedule": "cosine", "decay_rounds": 2},
        audit={"attacks": ["label_counts"]},
    )
    assert metrics(run)["targets"] == 10  # rounds 1 and 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.5},
        {"weight_decay": 0.1, "proximal_mu": 0.5},
        {"algorithm": "fedsgd", "batch_size": 12, "weight_decay": 0.1},
    ],
)
@pytest.mark.parametrize("correction", ["path", "simulated"])
def test_clients_and_sums_give_their_counts(
    tmp_path: Path, changes: dict[str, Any], correction: str
) -> None:
    training = FEDAVG.model_copy(update=changes)
    clients = run_label_counts(given(tmp_path / "c", training, correction=correction), "clients")
    assert counts_of(clients) == MIXES
    assert [(claim.client, claim.behind) for claim in clients.targets] == [
        (0, ()),
        (1, ()),
        (2, ()),
    ]
    summed = run_label_counts(given(tmp_path / "s", training, correction=correction), "sum")
    wrong = np.abs(np.array(counts_of(summed)) - np.sum(MIXES, axis=0)).sum() / 2
    assert wrong <= (correction == "simulated")  # of 36: one client stands for three
    assert [(claim.client, claim.behind) for claim in summed.targets] == [(SUM, (0, 1, 2))]


def test_from_a_clients_seat_the_others_are_counted(tmp_path: Path) -> None:
    found = run_label_counts(given(tmp_path / "t", FEDAVG, seat=1), "sum")
    assert counts_of(found) == [(np.array(MIXES[0]) + MIXES[2]).tolist()]
    assert found.targets[0].behind == (0, 2)


def test_notes_say_what_the_counts_rest_on(tmp_path: Path) -> None:
    found = run_label_counts(given(tmp_path / "a", FEDAVG), "clients")
    assert found.notes == (
        "The softmax is that of 100 auxiliary records, by class.",
        "6 local steps: the softmax is averaged along the straight way from the received to the "
        "returned model.",
    )
    noise = given(tmp_path / "n", FEDAVG, proxies="noise", correction="none")
    notes = run_label_counts(noise, "clients").notes
    assert notes[0] == "The softmax is that of 256 noise inputs in [0, 1]."
    assert "received model alone" in notes[1]


def test_same_seed_same_counts(tmp_path: Path) -> None:
    """With everything drawn that can be: noise, and simulated training."""
    settings: dict[str, Any] = {"proxies": "noise", "correction": "simulated"}
    first, second = (
        run_label_counts(given(tmp_path / name, FEDAVG, **settings), "clients") for name in "ab"
    )
    assert counts_of(first) == counts_of(second)


def test_what_is_not_known_is_assumed_only_when_told(tmp_path: Path) -> None:
    blind = ThreatModel("server", sees=SERVER.sees, knows=Knowledge.LOCAL_TRAINING)
    with pytest.raises(InputError, match="how many examples a client has is not known"):
        run_label_counts(given(tmp_path / "a", FEDAVG, blind), "clients")
    told = run_label_counts(given(tmp_path / "b", FEDAVG, blind, examples_per_client=12), "sum")
    assert counts_of(told) == [np.sum(MIXES, axis=0).tolist()]
    assert "12 examples a client are assumed." in told.notes
    one_step = LocalTraining(algorithm="fedsgd", batch_size=12)
    assumed = run_label_counts(given(tmp_path / "c", one_step, blind), "clients")
    assert counts_of(assumed) == MIXES
    assert "12 examples a client are assumed." in assumed.notes


def test_claims_beyond_reason_are_left_alone_and_the_others_counted(tmp_path: Path) -> None:
    found = run_label_counts(given(tmp_path / "t", FEDAVG, claimed=[12, 2.0**62, 12]), "clients")
    assert [claim.client for claim in found.targets] == [0, 2]
    assert any("client 1: no claim" in note for note in found.notes)


def test_sums_of_clients_that_train_differently_are_refused(tmp_path: Path) -> None:
    other = {2: FEDAVG.model_copy(update={"learning_rate": 0.5})}
    with pytest.raises(InputError, match="train in different ways"):
        run_label_counts(given(tmp_path / "t", FEDAVG, trainings=other), "sum")


def test_without_records_noise_must_be_asked_for(tmp_path: Path) -> None:
    bare = given(tmp_path / "t", FEDAVG)
    with pytest.raises(InputError, match='proxies = "noise"'):
        run_label_counts(
            AttackInput(view=bare.view, settings=bare.settings, rng=bare.rng), "clients"
        )
    noise = LabelCountSettings(proxies="noise", input_shape=[5])
    asked = AttackInput(view=bare.view, settings=noise, rng=bare.rng)
    assert counts_of(run_label_counts(asked, "clients")) == MIXES


def test_both_seats_are_attacks() -> None:
    assert (ATTACK.name, LOCAL_ATTACK.name) == ("label_counts", "local_label_counts")

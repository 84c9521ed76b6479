"""Members are records that went into an update, not records that somebody merely held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_audit.game import read_game, read_truth
from fl_audit.results import MembershipRecord
from fl_audit.run_directory import RunDirectory
from fl_audit.targets import Targets
from fl_audit.threat_model import PRESETS
from fl_audit.trace import TraceView
from fl_audit.trace.query import load_weights
from fl_audit.who_counts import scored_candidates
from simulations.population import build_population
from simulations.run import run_scenario
from simulations.scenario import parse_scenario
from simulations.truth import candidate_uses, reconstruction_targets


def row_space(out: Path, **tables: Any) -> MembershipRecord:
    scenario = parse_scenario({**tables, "audit": {"attacks": ["row_space"]}})
    (record,) = run_scenario(scenario, out=out).attacks
    assert isinstance(record, MembershipRecord), record
    return record


def test_clients_that_were_never_sampled_hold_no_members(tmp_path: Path) -> None:
    """One round, 2 of 10 clients: only their records can be found, and only they count."""
    record = row_space(
        tmp_path / "run",
        federation={"clients": 10, "fraction": 0.2, "rounds": 1},
        data={"examples_per_client": 20},
    )
    assert record.result is not None
    assert record.result.num_members == 40
    assert record.result.num_non_members == 40
    assert record.result.metrics["auc"].value == 1.0
    assert any("160 of 200 members were held" in note for note in record.notes)


def test_fedsgd_clients_use_what_they_drew_and_nothing_else(tmp_path: Path) -> None:
    record = row_space(
        tmp_path / "run",
        federation={"rounds": 3},
        training={"algorithm": "fedsgd", "batch_size": 1},
    )
    assert record.result is not None
    assert record.result.num_members <= 15
    assert record.result.metrics["auc"].value == 1.0


def test_drop_outs_and_stragglers_count_by_what_they_did(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "federation": {"rounds": 2},
        "faults": {"drop_out": 0.4, "straggler": 0.9, "straggler_share": 0.3},
        "training": {"local_epochs": 1, "batch_size": 5},
    }
    record = row_space(tmp_path / "run", **tables)
    assert record.result is not None
    assert 20 < record.result.num_members < 190
    assert record.result.metrics["auc"].value >= 0.999


def test_no_used_member_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client that holds candidates sends NaN: that is not "nothing detected"."""
    from simulations import client_app

    real = client_app.train

    def train(model: Any, records: Any, *args: Any, **kwargs: Any) -> Any:
        result = real(model, records, *args, **kwargs)
        if len(records) == 20:  # clients 0-3
            for parameter in model.parameters():
                parameter.data.fill_(float("nan"))
        return result

    monkeypatch.setattr(client_app, "train", train)
    scenario = parse_scenario(
        {
            "federation": {"rounds": 1},
            "data": {"examples_per_client": 20},
            "audit": {"attacks": ["row_space"]},
        }
    )
    (record,) = run_scenario(scenario, out=tmp_path / "run").attacks
    assert record.kind == "unavailable"


def test_groups_are_kept_or_left_out_whole(tmp_path: Path) -> None:
    run_scenario(
        parse_scenario({"federation": {"clients": 10, "fraction": 0.3, "rounds": 1},
                        "data": {"examples_per_client": 20},
                        "game": {"non_members_per_member": 2, "members": 100}}),
        out=tmp_path / "run",
    )  # fmt: skip
    run = RunDirectory.open(tmp_path / "run")
    truth, game = read_truth(run), read_game(run)
    mask = scored_candidates(game, truth, run.open_trace()).reshape(-1, 3)
    assert (mask.all(axis=1) | ~mask.any(axis=1)).all()
    assert 0 < mask.any(axis=1).sum() < len(mask)
    labels = game.candidates.labels.reshape(-1, 3)
    assert (labels == labels[:, :1]).all()


def test_uses_follow_the_draws_of_the_clients() -> None:
    scenario = parse_scenario({"training": {"clients": {"1": {"algorithm": "fedsgd"}}}})
    population = build_population(scenario)
    uses, truth = candidate_uses(scenario, population), population.truth
    assert uses.shape == (400, 6)
    assert not uses[~truth.is_member].any()
    epochs = truth.client != 1
    assert uses[epochs & truth.is_member].all()
    drawn = uses[(truth.client == 1) & truth.is_member].sum(axis=0)
    assert (drawn == 20).all()  # all members of this client are candidates; batch of 20
    assert np.unique(uses[(truth.client == 1) & truth.is_member], axis=1).shape[1] > 1


@pytest.mark.parametrize("faults", [{}, {"drop_out": 1e-9}])  # counted by epochs, and by draws
@pytest.mark.parametrize("algorithm", ["fedavg", "fedsgd"])
def test_a_round_without_a_learning_rate_uses_nothing(
    algorithm: str, faults: dict[str, float]
) -> None:
    cosine: dict[str, Any] = {"schedule": "cosine", "decay_rounds": 2}
    gone = {"schedule": "exponential", "decay": 1e-30, "learning_rate": 1e-5}  # 1e-65 in round 3
    training = {"algorithm": algorithm, **cosine, "clients": {"1": gone}}
    scenario = parse_scenario({"federation": {"rounds": 4}, "training": training, "faults": faults})
    population = build_population(scenario)
    uses, member = candidate_uses(scenario, population), population.truth.is_member
    for client in range(5):
        here = uses[member & (population.truth.client == client)]
        assert here.any(axis=0).tolist() == [True, True, False, False]
    for own in reconstruction_targets(scenario, population):
        assert own.rounds == [1, 2]


@pytest.mark.parametrize("algorithm", ["fedavg", "fedsgd"])
@pytest.mark.parametrize("straggler", [0.0, 0.7])
def test_targets_are_what_candidates_uses_say(algorithm: str, straggler: float) -> None:
    """Both say what went into updates, of all clients and algorithms; one counts the other's."""
    scenario = parse_scenario(
        {
            "federation": {"rounds": 3},
            "training": {"algorithm": algorithm, "batch_size": 7, "local_epochs": 1},
            "faults": {"straggler": straggler, "straggler_share": 0.4},
        }
    )
    population = build_population(scenario)
    uses, truth = candidate_uses(scenario, population), population.truth
    targets = Targets(reconstruction_targets(scenario, population))
    sizes = set()
    for client, records in enumerate(population.clients):
        here = truth.is_member & (truth.client == client)
        for number in (1, 2, 3):
            target = targets.find(number, client)
            assert target is not None
            sizes.add(len(target.labels))
            used = population.game.candidates.take(np.flatnonzero(here & uses[:, number - 1]))
            rows = {record.tobytes() for record in np.asarray(used.inputs)}
            assert rows <= {record.tobytes() for record in target.inputs}
            if here.sum() == len(records):
                assert len(used) == len(target.labels)
    assert sizes == {("fedavg", 0.0): {40}, ("fedavg", 0.7): {14, 40}}.get(
        (algorithm, straggler), {7}
    )


def test_a_recorded_round_can_be_trained_again_from_its_targets(tmp_path: Path) -> None:
    """The truth is what was trained on: one full-batch step on it gives the recorded update."""
    run_scenario(
        parse_scenario(
            {"federation": {"rounds": 2}, "training": {"algorithm": "fedsgd", "batch_size": 9}}
        ),
        out=tmp_path / "run",
    )
    run = RunDirectory.open(tmp_path / "run")
    targets, spec = read_truth(run).targets, run.read_manifest().model
    assert spec is not None
    build = spec.builder(trusted=True)
    view = TraceView(run.open_trace(), PRESETS["curious-server"], model=build)
    for client in (0, 4):
        target, module = targets.find(2, client), build()
        assert target is not None
        load_weights(module, view.global_model(2))
        logits = module(torch.from_numpy(target.inputs))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(target.labels))
        loss.backward()
        update = view.client_update(2, client)
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.numpy()
            np.testing.assert_allclose(update[name], -0.1 * gradient, atol=1e-6)

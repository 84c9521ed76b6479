"""Members are records that went into an update, not records that somebody merely held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_audit.game import read_game, read_truth
from fl_audit.results import MembershipRecord
from fl_audit.run_directory import RunDirectory
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
    targets = reconstruction_targets(scenario, population)
    assert {t.round for t in targets} == ({1, 2} if algorithm == "fedsgd" else set())

"""Shadow federations: the same scenario on other records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from attacks.audit import audit_run
from attacks.shadows.training import Job
from fl_audit.errors import InputError
from fl_audit.results import MembershipResult
from fl_audit.run_directory import RunDirectory
from simulations.population import build_population
from simulations.run import run_scenario
from simulations.scenario import Scenario, parse_scenario
from simulations.shadows import FederationTrainer, run_trainer, shadow_trainer

RMIA = {"name": "rmia", "num_shadow_models": 4}


def scenario(**tables: Any) -> Scenario:
    plain: dict[str, Any] = {
        "federation": {"clients": 3, "rounds": 3},
        "data": {"examples_per_client": 30, "random_labels": True},
        "training": {"local_epochs": 30},
        "game": {"members": 90, "auxiliary": 200},
    }
    return parse_scenario(plain | tables)


def bits(model: Any) -> bytes:
    assert isinstance(model, nn.Module)
    return b"".join(t.detach().numpy().tobytes() for t in model.state_dict().values())


def test_a_shadow_federation_learns_its_own_records_and_repeats() -> None:
    given = scenario(federation={"clients": 3, "rounds": 20})
    trainer = shadow_trainer(given, "federation")
    assert isinstance(trainer, FederationTrainer)
    records = build_population(given).game.candidates.take(np.arange(60))
    found: dict[int, Any] = {}
    trainer.train([Job(records, 1), Job(records, 1), Job(records, 2)], found.__setitem__)
    assert bits(found[0]) == bits(found[1]) != bits(found[2])
    import torch

    answers = found[0](torch.from_numpy(records.inputs)).argmax(1).numpy()
    assert (answers == records.labels).mean() > 0.8  # random labels: known by training only


def test_the_key_follows_what_has_a_say_in_training() -> None:
    keys = [
        shadow_trainer(given, "federation").key
        for given in (
            scenario(),
            scenario(title="another", audit={"attacks": ["lira"]}),
            scenario(training={"local_epochs": 31}),
            scenario(defence={"name": "none"}, strategy={"name": "FedAdam", "eta": 0.1}),
        )
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.parametrize("kind", ["federation", "central"])
def test_the_final_model_is_audited_and_the_report_says_how(kind: str, tmp_path: Path) -> None:
    given = scenario(audit={"attacks": [RMIA], "shadows": kind})
    report = run_scenario(given, out=tmp_path / "run")
    (record,) = report.attacks
    assert record.kind == "membership", record
    assert record.result is not None
    assert record.result.metrics["auc"].low > 0.5
    words = {"federation": "shadow federations of the same", "central": "training at one place"}
    assert any(words[kind] in note for note in record.notes)
    assert len(list((tmp_path / "run" / "shadows").glob("weights-*"))) >= 4


def test_a_recording_without_a_scenario_is_attacked_with_central_models(
    run_tables: Callable[..., Path],
) -> None:
    run = run_tables("plain", federation={"rounds": 1})
    (run / "scenario.toml").unlink()
    assert run_trainer(RunDirectory.open(run), trusted=False) is None
    (result,) = audit_run(run, attacks=[{**RMIA, "name": "lira"}])
    assert isinstance(result, MembershipResult), result.record
    assert any("training at one place" in note for note in result.record.notes)


def test_code_that_a_scenario_names_is_not_imported_unasked(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.scenario_file.write_text('[data]\nname = "evil:load"\n')
    with pytest.raises(InputError, match="not imported unasked"):
        run_trainer(run, trusted=False)

"""Property inference: clients told apart by what they hold, its null, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.audit import audit_run
from attacks.federated.properties import has_property
from attacks.federated.property_inference import PropertySettings, property_inference
from attacks.property_scoring import score_property
from attacks.requests import parse_attacks
from fl_audit.errors import InputError, ObservationError
from fl_audit.estimates import PropertyScores
from fl_audit.game import GameTruth, read_game, read_truth
from fl_audit.records import Records
from fl_audit.results import EstimateRecord
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS, ThreatModel
from fl_audit.trace import TraceView
from simulations.run import run_scenario
from simulations.scenario import parse_scenario

SEED = 20_261_125


@pytest.fixture(scope="module")
def by_class_run(run_tables: Callable[..., Path]) -> Path:
    """20 clients of two classes each: four of them hold class 3."""
    return run_tables(
        "by-class",
        federation={"clients": 20, "rounds": 2},
        data={"test": 100},
        partition={"kind": "by-class"},
        game={"members": 50, "auxiliary": 300},
        audit={"attacks": [{"name": "property_inference", "property": "class:3"}]},
    )


def record_of(run: Path, **settings: Any) -> EstimateRecord:
    (result,) = audit_run(run, attacks=[{"name": "property_inference", **settings}])
    assert isinstance(result.record, EstimateRecord), result.record
    return result.record


def test_clients_that_hold_a_class_stand_out(by_class_run: Path) -> None:
    record = record_of(by_class_run, property="class:3")
    assert record.metrics["auc"].value > 0.9
    assert record.metrics["auc"].n == 20  # clients, not updates
    assert [point.round for point in record.timeline] == [1, 2]


def test_classifiers_of_shuffled_labels_are_at_chance(by_class_run: Path) -> None:
    """The mean AUC of 200 independent shuffles is 0.5 by symmetry of the labels; the normal
    interval at level 1e-6 is 4.9 standard errors, and the reported one, at 95 %, 1.97."""
    null = record_of(by_class_run, property="class:3", num_null=200, rounds=[1]).null["auc"]
    assert null.n == 200
    assert abs(null.value - 0.5) < (null.high - null.low) / 2 / 1.97 * 4.9


def test_too_few_clients_without_it_are_refused_and_scores_stand(digits_run: Path) -> None:
    record = record_of(digits_run, property="class:3")
    assert not record.metrics
    assert "an AUC over clients needs 3 of each" in record.refused["auc"]


def test_a_function_of_ones_own_is_counted_at_run_start(
    run_tables: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "own_properties.py").write_text(
        "def is_even(records):\n    return records.labels % 2 == 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "own_properties:is_even"
    run = run_tables(
        "function",
        federation={"rounds": 1},
        audit={"attacks": [{"name": "property_inference", "property": name}]},
    )
    truth = read_truth(RunDirectory.open(run))
    assert truth.client_labels is not None
    counts = truth.client_labels
    np.testing.assert_allclose(
        truth.property_shares[name], counts[:, ::2].sum(axis=1) / counts.sum(axis=1)
    )
    record = record_of(run, property="own_properties:is_even", min_share=0.9)
    assert "clients have the property" in record.refused["auc"]


def test_a_property_that_was_not_counted_is_refused() -> None:
    output = PropertyScores("other:function", {(1, 0): 0.0}, (), 0.0)
    coins = np.zeros(1, np.bool_)
    fields, table = score_property(output, GameTruth(coins, np.zeros(1, np.int64), coins))
    assert "the run did not count this property" in fields["refused"]["auc"]
    assert table["log_odds"].tolist() == [0.0]


def test_an_unknown_property_is_refused_before_the_first_round(tmp_path: Path) -> None:
    table = {"audit": {"attacks": [{"name": "property_inference", "property": "nowhere:it"}]}}
    with pytest.raises(InputError, match="cannot be imported"):
        run_scenario(parse_scenario(table), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="property"):
        parse_attacks([{"name": "property_inference", "property": "darkness"}])
    with pytest.raises(InputError, match=r"'property' = 'class:x': must be \"class:<number>\""):
        parse_attacks([{"name": "property_inference", "property": "class:x"}])


def test_a_function_must_give_a_bool_a_record() -> None:
    records = Records(np.arange(2), np.zeros((2, 1), np.float32), np.zeros(2, np.int64))
    with pytest.raises(InputError, match="not one bool for each of 2 records"):
        has_property("numpy:shape", records)
    rule = r"property = 'os:getcwd': must be a function that takes Records .*2 records.*TypeError"
    with pytest.raises(InputError, match=rule):
        has_property("os:getcwd", records)


def scores(run: Path, who: ThreatModel, **changes: Any) -> PropertyScores:
    directory = RunDirectory.open(run)
    manifest = directory.read_manifest()
    assert manifest.model is not None
    view = TraceView(
        directory.open_trace(),
        who,
        model=manifest.model.builder(trusted=True),
        local_training=manifest.local_training,
    )
    settings = PropertySettings(**{"num_updates": 4, "num_null": 2, **changes})
    auxiliary = read_game(directory).auxiliary
    return property_inference(view, auxiliary, settings, rng=np.random.default_rng(SEED))


def test_every_update_has_a_score(digits_run: Path) -> None:
    found = scores(digits_run, PRESETS["curious-server"], rounds=[1, 2])
    assert sorted(found.scores) == [(r, c) for r in (1, 2) for c in range(5)]
    assert [sorted(table) for table in found.null] == [sorted(found.scores)] * 2


def test_what_it_refuses(digits_run: Path) -> None:
    with pytest.raises(ObservationError, match="client-updates"):
        scores(digits_run, PRESETS["secure-aggregation-server"])
    with pytest.raises(InputError, match="0 of 100 auxiliary records are with it"):
        scores(digits_run, PRESETS["curious-server"], property="class:77")
    with pytest.raises(InputError, match="must not exceed high_share"):
        scores(digits_run, PRESETS["curious-server"], low_share=0.9)

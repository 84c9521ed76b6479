"""Attribute inference: the value never reaches the attack, the imputer never sees the view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.audit import audit_run
from attacks.federated.attribute_inference import (
    ATTACK,
    AttributeSettings,
    attribute_inference,
    bins_of,
    mask,
)
from attacks.federated.imputer import impute
from attacks.requests import AttackRequest
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError, ObservationError
from fl_audit.estimates import AttributeGuesses
from fl_audit.game import read_game
from fl_audit.records import Records
from fl_audit.results import EstimateRecord, UnavailableRecord
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS, ThreatModel
from fl_audit.trace import TraceView

SEED = 20_261_125
WORST = 7  # "mean concave points": varies much, and is not a function of the others


@pytest.fixture(scope="module")
def lone_records_run(run_tables: Callable[..., Path]) -> Path:
    """60 clients with one record each: an update is that record's gradients, nothing averaged."""
    return run_tables(
        "lone",
        federation={"clients": 60, "rounds": 3},
        data={"name": "breast-cancer", "examples_per_client": 1, "test": 50},
        game={"auxiliary": 200, "question": "client"},
    )


def record_of(run: Path, **settings: Any) -> EstimateRecord:
    (result,) = audit_run(run, attacks=[{"name": "attribute_inference", **settings}])
    assert isinstance(result.record, EstimateRecord), result.record
    return result.record


def test_updates_of_lone_records_give_the_value_away(lone_records_run: Path) -> None:
    record = record_of(lone_records_run, attribute=WORST, weight=4.0)
    assert record.metrics["accuracy_of_update_alone"].value > 0.75
    assert record.null["accuracy_of_update_alone"].value < 0.6
    assert record.metrics["update_alone_gain_over_non_members"].low > 0.2
    assert record.metrics["accuracy"].n == 60  # members
    assert set(record.baseline) >= {"accuracy"}
    assert record.chance == {"gain_over_imputer": 0, "update_alone_gain_over_non_members": 0}


def test_on_lone_digits_updates_beat_the_imputer(run_tables: Callable[..., Path]) -> None:
    """Over seeds 0-4 the gain is 0.157 [0.097, 0.216] (docs/inference_attacks.md)."""
    run = run_tables(
        "lone-digits",
        federation={"clients": 60, "rounds": 3},
        data={"examples_per_client": 1},
        game={"auxiliary": 200, "question": "client"},
    )
    record = record_of(run, attribute=43, weight=4.0)
    assert record.metrics["gain_over_imputer"].value > 0.05
    assert record.metrics["update_alone_gain_over_non_members"].low > 0


def test_non_members_gain_nothing(lone_records_run: Path) -> None:
    """Updates that a record had no part in do not help beyond the imputer: the mean is at most 0
    (-0.053 [-0.133, 0.026] over seeds 0-4). Student's lower limit over 60 records lies above it
    with probability 1e-6 at 5.3 standard errors; the reported limits are 2.0 of them."""
    record = record_of(lone_records_run, attribute=WORST, weight=4.0)
    gain = record.null["gain_over_imputer"]
    assert gain.value <= (gain.high - gain.low) / 2 / 2.0 * 5.3


def test_the_value_never_reaches_the_attack(lone_records_run: Path) -> None:
    """Whatever it is given is the same when the true values are exchanged for others."""
    run = RunDirectory.open(lone_records_run)
    seen: list[Records] = []

    def spy(given: AttackInput) -> AttributeGuesses:
        assert given.candidates is not None
        seen.append(given.candidates)
        raise InputError("spy", 0, "saw enough", "Nothing.")

    settings = AttributeSettings(attribute=WORST)
    request = AttackRequest("spy", replace(ATTACK, run=spy), settings)
    (result,) = audit_run(run.path, attacks=[request], folder="spied")
    assert isinstance(result.record, UnavailableRecord)
    original = read_game(run).candidates
    assert np.unique(original.inputs[:, WORST]).size > 50
    assert (seen[0].inputs[:, WORST] == 0).all()
    others = np.delete(np.arange(30), WORST)
    np.testing.assert_array_equal(seen[0].inputs[:, others], original.inputs[:, others])


def view_of(run: Path, who: ThreatModel = PRESETS["curious-server"]) -> TraceView:
    directory = RunDirectory.open(run)
    manifest = directory.read_manifest()
    assert manifest.model is not None
    return TraceView(directory.open_trace(), who, model=manifest.model.builder(trusted=True))


def test_guesses_do_not_change_with_what_stands_at_the_place(lone_records_run: Path) -> None:
    game = read_game(RunDirectory.open(lone_records_run))
    settings = AttributeSettings(attribute=WORST)
    other = game.candidates.inputs.copy()
    other[:, WORST] = 0.9
    guesses = [
        attribute_inference(
            view_of(lone_records_run),
            Records(game.candidates.ids, inputs, game.candidates.labels),
            game.auxiliary,
            settings,
            asked=game.asked,
            seed=SEED,
        )
        for inputs in (game.candidates.inputs, other)
    ]
    np.testing.assert_array_equal(guesses[0].combined, guesses[1].combined)
    np.testing.assert_array_equal(guesses[0].imputed, guesses[1].imputed)


@pytest.mark.parametrize("kind", ["logistic", "boosting", "best"])
def test_the_imputer_learns_from_auxiliary_records_alone(kind: Any) -> None:
    """The value is a copy of another one: found without any view, which it is never given."""
    rng = np.random.default_rng(SEED)
    inputs = rng.random((300, 4)).astype(np.float32)
    inputs[:, 2] = inputs[:, 0]
    records = Records(np.arange(300), inputs, rng.integers(2, size=300))
    edges, values = bins_of(inputs[:200, 2], 2)
    bins = np.searchsorted(edges, inputs[:, 2], side="right")
    hidden = mask(AttributeSettings(attribute=2), records)
    found = impute(
        records.take(np.arange(200)),
        bins[:200],
        hidden.take(np.arange(200, 300)),
        attribute=2,
        num_bins=len(values),
        kind=kind,
        seed=0,
    )
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == bins[200:]).mean() > 0.85


def test_bins() -> None:
    edges, values = bins_of(np.array([0.0, 1.0, 1.0, 0.0]), 4)
    assert (edges.tolist(), values.tolist()) == ([0.5], [0.0, 1.0])
    edges, values = bins_of(np.arange(100.0), 4)
    np.testing.assert_allclose(edges, [24.75, 49.5, 74.25])
    np.testing.assert_allclose(values, [12, 37, 62, 87])
    many_zeros = np.concatenate([np.zeros(90), np.arange(1, 11)])
    edges, values = bins_of(many_zeros, 3)
    assert (edges.tolist(), values.tolist()) == ([1.0], [0.0, 5.5])


def test_what_it_refuses(lone_records_run: Path, digits_run: Path) -> None:
    (result,) = audit_run(digits_run, attacks=[{"name": "attribute_inference", "attribute": 64}])
    assert isinstance(result.record, UnavailableRecord)
    assert "an input has 64 values, numbered from 0" in result.record.reason
    (result,) = audit_run(digits_run, attacks=["attribute_inference"])  # a pixel always blank
    assert isinstance(result.record, UnavailableRecord)
    assert "attribute = 0: takes one value in all 100 auxiliary records" in result.record.reason
    other = read_game(RunDirectory.open(digits_run)).auxiliary
    assert other is not None
    first = np.flatnonzero(np.ptp(other.inputs.reshape(100, -1), axis=0) > 0)[0]
    assert f"for example attribute = {first}." in result.record.reason
    game = read_game(RunDirectory.open(lone_records_run))
    blind = PRESETS["secure-aggregation-server"]
    with pytest.raises(ObservationError, match="client-updates"):
        attribute_inference(
            view_of(lone_records_run, blind),
            game.candidates,
            game.auxiliary,
            AttributeSettings(),
            seed=0,
        )
    flat = Records(np.arange(3), np.eye(3, 5, dtype=np.float32), np.zeros(3, np.int64))
    with pytest.raises(InputError, match="refuses inputs of this shape"):
        attribute_inference(view_of(lone_records_run), flat, flat, AttributeSettings(), seed=0)

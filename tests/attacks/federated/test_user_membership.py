"""User-level membership: by hand, on fresh records of persons, and where there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attacks.audit import audit_run
from attacks.federated.loss_series import loss_series_scores
from attacks.federated.user_membership import user_membership_scores
from attacks.registry import ATTACKS
from fl_audit.errors import InputError
from fl_audit.factories import ModelSpec
from fl_audit.game import read_game, read_truth
from fl_audit.records import Records
from fl_audit.results import MembershipResult
from fl_audit.run_directory import RunDirectory
from fl_audit.stats import auc_ci
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Reply, Trace, TraceView, TraceWriter

FALSE_FAILURE = 1e-6
LEVEL = FALSE_FAILURE / len(ATTACKS)
BASES = ["loss_series", "cosine", "loss_slope"]
SPEC = ModelSpec(
    factory="simulations.models:mlp",
    settings={"input_shape": [4], "num_classes": 3, "hidden": []},
)


@pytest.fixture(scope="module")
def persons_run(run_tables: Callable[..., Path]) -> Path:
    """100 persons among 5 clients that train for long; the question names the client."""
    return run_tables(
        "persons",
        federation={"rounds": 8},
        data={"name": "personas", "examples_per_client": 160},
        game={"unit": "user", "question": "client"},
        training={"local_epochs": 30},
        audit={"attacks": ["loss_threshold"]},
    )


@pytest.mark.parametrize("base", BASES)
def test_persons_of_the_federation_stand_out_and_null_persons_do_not(
    base: str, persons_run: Path
) -> None:
    """At level 1e-6 / number of attacks for the null; the other side lies above chance at 95 %."""
    wanted = {"name": "user_membership", "base": base}
    (result,) = audit_run(persons_run, attacks=[wanted], folder=base)
    assert isinstance(result, MembershipResult), result.record
    assert result.record.unit == "user"
    assert result.record.result is not None
    assert result.record.result.metrics["auc"].n == 200
    assert result.record.result.metrics["auc"].low > 0.5
    truth, game = (f(RunDirectory.open(persons_run)) for f in (read_truth, read_game))
    lots = truth.null_is_member[np.unique(game.null_users, return_index=True)[1]]
    assert result.null_scores is not None
    estimate = auc_ci(lots, result.null_scores, confidence=1 - LEVEL)
    assert estimate.low <= 0.5 <= estimate.high
    assert bool(result.record.timeline) == (base != "loss_slope")


def test_other_attacks_are_scored_by_person_and_shadow_models_are_refused(
    persons_run: Path,
) -> None:
    series, threshold, lira = audit_run(
        persons_run, attacks=["loss_series", "loss_threshold", "lira"], folder="others"
    )
    for result in (series, threshold):
        assert isinstance(result, MembershipResult)
        assert result.record.result is not None
        assert result.record.result.metrics["auc"].n == 200
        assert result.record.decisions is None
    assert lira.record.kind == "unavailable"
    assert "game.unit" in lira.record.reason


def test_a_game_about_records_gives_the_reason(digits_run: Path) -> None:
    (result,) = audit_run(digits_run, attacks=["user_membership"], keep_unavailable=False)
    assert result.record.kind == "unavailable"
    assert "does not say whose they are" in result.record.reason


def losses_fall(folder: Path, falls: list[list[float]]) -> TraceView:
    """A view of clients whose bias for class 0 grows by the given steps, round by round."""
    writer = TraceWriter(folder)
    shapes = {n: tuple(v.shape) for n, v in SPEC.builder(trusted=False)().state_dict().items()}

    def model(bias: float) -> dict[str, np.ndarray]:
        arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
        (name,) = [n for n, shape in shapes.items() if shape == (3,)]
        arrays[name][0] = bias
        return arrays

    for number, biases in enumerate(falls, start=1):
        writer.begin_round(number, model(0), list(range(len(biases))))
        writer.add_replies(number, [Reply(i, model(b)) for i, b in enumerate(biases)])
        writer.end_round(number, model(0), {})
    writer.close()
    return TraceView(
        Trace.open(folder), PRESETS["curious-server"], model=SPEC.builder(trusted=False)
    )


def records(labels: list[int]) -> Records:
    n = len(labels)
    return Records(np.arange(n), np.zeros((n, 4), np.float32), np.asarray(labels))


def log_probability(bias: float, label: int) -> float:
    return (bias if label == 0 else 0.0) - float(np.log(np.exp(bias) + 2))


def test_the_score_is_the_mean_over_a_persons_records_of_the_best_client(tmp_path: Path) -> None:
    view = losses_fall(tmp_path / "t", [[0.0, 1.0], [2.0, 1.0]])
    data, users = records([0, 1, 0, 0]), np.array([9, 9, 4, 4])
    persons, scores = user_membership_scores(view, data, users)
    assert persons.tolist() == [4, 9]
    by_record = [
        [np.mean([log_probability(b, label) for b in series]) for label in data.labels]
        for series in ([0.0, 2.0], [1.0, 1.0])
    ]
    expected = np.max([[np.mean(r[2:]), np.mean(r[:2])] for r in by_record], axis=0)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    one_each = user_membership_scores(view, data, np.arange(4))[1]
    np.testing.assert_allclose(one_each, loss_series_scores(view, data), rtol=1e-6)


def test_the_slope_is_that_of_least_squares(tmp_path: Path) -> None:
    biases = [0.0, 1.0, 3.0]
    view = losses_fall(tmp_path / "t", [[b] for b in biases])
    _, scores = user_membership_scores(view, records([0, 1]), np.array([0, 1]), base="loss_slope")
    for label, found in enumerate(scores):
        values = [log_probability(b, label) for b in biases]
        np.testing.assert_allclose(found, np.polyfit([1, 2, 3], values, 1)[0], rtol=1e-5)


def test_one_round_has_no_slope(tmp_path: Path) -> None:
    view = losses_fall(tmp_path / "t", [[1.0]])
    with pytest.raises(InputError, match="a slope needs two"):
        user_membership_scores(view, records([0]), np.array([0]), base="loss_slope")

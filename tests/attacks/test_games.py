"""Games about many models: of the algorithm, and of single records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch import nn

import fl_audit
from attacks.games import GAMES, _accuracy, _over_records
from fl_audit.errors import InputError
from fl_audit.report.model import AuditReport
from fl_audit.results import MembershipRecord, UnavailableRecord

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(400, 20)).astype(np.float32)
LABELS = RNG.integers(4, size=400)  # random: a model can only learn them by heart
TABLE = {"epochs": 60, "learning_rate": 1e-2}


def play(game: str, **changes: Any) -> AuditReport:
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))
    options: dict[str, Any] = {
        "members": range(60),
        "training": TABLE,
        "attacks": ["loss_threshold"],
        "num_targets": 6,
        "seed": 0,
    }
    return fl_audit.audit_model(model, (INPUTS, LABELS), game=game, **options | changes)  # type: ignore[arg-type]


def figure(report: AuditReport) -> MembershipRecord:
    (record,) = report.attacks
    assert isinstance(record, MembershipRecord), record
    return record


def test_an_algorithm_that_memorises_is_found_over_models() -> None:
    record = figure(play("algorithm"))
    assert record.result is not None
    found = record.result.metrics["auc"]
    assert found.n == 6  # models are the trials
    assert found.low > 0.8


def test_an_algorithm_that_does_not_train_gives_nothing_away() -> None:
    still = {"epochs": 1, "learning_rate": 1e-12}
    record = figure(play("algorithm", training=still, num_targets=12))
    assert record.result is not None
    found = record.result.metrics["auc"]
    assert found.low <= 0.5 <= found.high


@pytest.mark.parametrize("game", ["algorithm", "record"])
def test_an_attack_with_shadow_models_is_at_chance_where_nothing_is_learned(game: str) -> None:
    """Models whose weights depend on the seed alone. Leaving out the attacked model only would
    pull its records' scores below chance."""

    def ignore(model: nn.Module, dataset: Any, *, seed: int) -> nn.Module:
        return model

    lira = {"name": "lira", "num_shadow_models": 8}
    record = figure(play(game, training=None, train_fn=ignore, attacks=[lira], num_targets=16))
    assert record.result is not None
    found = record.result.metrics["auc"]
    assert abs(found.value - 0.5) < 0.03
    assert found.low <= 0.5 <= found.high
    assert record.settings["num_shadow_models"] == 8  # as asked, whatever was trained


def test_records_have_a_risk_of_their_own() -> None:
    report = play("record", num_targets=8)
    record = figure(report)
    assert record.result is not None
    assert record.result.metrics["auc"].value > 0.8
    assert record.details is not None
    assert record.details.most_exposed[0].score == 1.0
    assert report.model is not None
    assert report.model.game == GAMES["record"]


def test_the_table_has_the_accuracy_on_each_record(tmp_path: Path) -> None:
    play("algorithm", num_targets=6).save(tmp_path)
    table = pq.read_table(tmp_path / "results" / "loss_threshold.parquet").to_pandas()
    assert table.accuracy.between(0, 1).all()
    assert table.accuracy.mean() > 0.8
    member = np.array([[True, False]] * 4).repeat(1, axis=0)
    member[1::2] = ~member[1::2]
    assert _accuracy(member * 1.0, member).tolist() == [1.0, 1.0]
    assert _accuracy(member * -1.0, member).max() <= 0.5


def test_leave_one_out_asks_about_the_records_named() -> None:
    record = figure(play("leave-one-out", records=[3, 5], num_targets=4))
    assert record.result is not None
    assert record.details is not None
    assert sorted(e.id for e in record.details.most_exposed) == [3, 5]
    found = record.result.metrics["auc"]
    assert found.value > 0.8  # a random label is known only by who trained on it
    assert found.low < found.value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_targets": 3}, "must be even"),
        ({"attacks": [{"name": "rmia", "mode": "offline"}]}, 'mode = "online"'),
        ({"training": None}, "nothing says how"),
    ],
)
def test_what_cannot_be_played_says_why(changes: dict[str, Any], message: str) -> None:
    (record,) = play("algorithm", **changes).attacks
    assert isinstance(record, UnavailableRecord)
    assert message in record.reason


def test_unknown_records_and_games_are_named() -> None:
    with pytest.raises(InputError, match="records = 399999: is no candidate"):
        play("leave-one-out", records=[399999])
    with pytest.raises(InputError, match="Did you mean 'model'"):
        play("modle")


def test_the_mean_over_records_has_an_interval_over_models() -> None:
    """A closed form: scores that tell membership alone give 1, whatever the model."""
    rng = np.random.default_rng(0)
    member = rng.random((8, 30)) < 0.5
    member[0], member[1] = True, False  # every record on both sides
    perfect = _over_records(member.astype(float), member).metrics["auc"]
    assert perfect.value == 1.0
    assert perfect.low == pytest.approx(0.025 ** (1 / 4))
    blind = _over_records(rng.normal(size=member.shape), member).metrics["auc"]
    assert blind.low <= 0.5 <= blind.high

"""`audit_model` from end to end, on models trained in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier
from torch import nn

import fl_audit
from attacks.model_audit import ModelProxy, training_config
from attacks.shadows.training import Job, TrainingConfig, fresh_builder, train_one
from fl_audit.cli.report import render
from fl_audit.errors import InputError, ObservationError
from fl_audit.records import Records
from fl_audit.report.model import AuditReport, load_report
from fl_audit.results import MembershipRecord, UnavailableRecord
from fl_audit.run_directory import RunDirectory
from fl_audit.stats import auc

CONFIG = TrainingConfig(epochs=30, learning_rate=5e-3)
TABLE = {"epochs": 30, "learning_rate": 5e-3}
CHEAP = ["loss_threshold", {"name": "rmia", "num_shadow_models": 6}]


def digits(num: int = 1000) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(inputs))[:num]
    return (inputs[order] / 16).astype(np.float32), labels[order].astype(np.int64)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def target() -> nn.Module:
    inputs, labels = digits()
    members = Records(np.arange(150), inputs[:150], labels[:150])
    return train_one(fresh_builder(mlp()), Job(members, 3), CONFIG)


def audit(model: Any, **changes: Any) -> AuditReport:
    options: dict[str, Any] = {
        "members": range(150),
        "training": TABLE,
        "attacks": CHEAP,
        "seed": 0,
    }
    return fl_audit.audit_model(model, changes.pop("population", digits()), **options | changes)


def by_label(report: AuditReport) -> dict[str, MembershipRecord]:
    found = {a.label: a for a in report.attacks}
    assert all(isinstance(a, MembershipRecord) for a in found.values()), found
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def done(target: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditReport, Path]:
    out = tmp_path_factory.mktemp("audit") / "run"
    return audit(target, out=out), out


def test_the_report_on_disk_is_the_one_returned(done: tuple[AuditReport, Path]) -> None:
    report, out = done
    assert load_report(out / "report.json").model_dump() == report.model_dump()
    assert "<html" in (out / "report.html").read_text()
    assert (out / "report.json").stat().st_mode & 0o777 == 0o600


def test_the_report_can_be_rendered_again(done: tuple[AuditReport, Path]) -> None:
    report, out = done
    page = (out / "report.html").read_bytes()
    render(RunDirectory.open(out))
    assert load_report(out / "report.json").model == report.model
    assert (out / "report.html").read_bytes() == page


def test_every_number_can_be_computed_again_from_the_table(done: tuple[AuditReport, Path]) -> None:
    report, out = done
    for label, record in by_label(report).items():
        table = pq.read_table(out / "results" / f"{label}.parquet").to_pandas()
        assert {"id", "is_member", "label", "score", "probability", "decision"} <= set(table)
        assert record.result is not None
        assert record.decisions is not None
        member, score = table.is_member.to_numpy(), table.score.to_numpy()
        assert record.result.metrics["auc"].value == auc(member, score)
        assert (table.decision == (score > record.decisions.threshold)).all()
        assert table.probability.between(0, 1).all()
        assert record.decisions.num_called == table.decision.sum()


def test_what_stands_beside_the_attacks(done: tuple[AuditReport, Path]) -> None:
    report, _ = done
    model = report.model
    assert model is not None
    assert (model.num_members, model.num_non_members) == (150, 150)
    assert model.num_null == 60
    assert model.num_members + model.num_non_members + model.num_null + model.num_auxiliary == 1000
    assert model.shadow_models == {"offline": 2, "online": 6}  # the former only to calibrate
    assert model.trainer is not None
    whole = model.utility[0]
    assert whole.train_accuracy is not None
    assert whole.test_accuracy is not None
    assert whole.accuracy_gap is not None
    assert whole.train_accuracy.value > whole.test_accuracy.value
    assert whole.accuracy_gap.value == pytest.approx(
        whole.train_accuracy.value - whole.test_accuracy.value
    )
    assert [u.label for u in model.utility] == [None, *range(10)]
    assert len(model.agreement) == 1
    (pair,) = model.agreement
    assert pair.both + pair.only_first + pair.only_second + pair.neither == 150
    assert model.gradient_norms is not None
    assert sum(model.gradient_norms.members) == pytest.approx(1)


def test_shadow_attacks_say_how_their_models_came_about(done: tuple[AuditReport, Path]) -> None:
    notes = " ".join(by_label(done[0])["rmia"].notes)
    assert "online" in notes
    assert "default trainer" in notes
    assert "auxiliary" in notes


def test_the_same_seed_gives_the_same_bytes(done: tuple[AuditReport, Path], tmp_path: Path) -> None:
    _, out = done
    inputs, labels = digits()
    members = Records(np.arange(150), inputs[:150], labels[:150])
    again = train_one(fresh_builder(mlp()), Job(members, 3), CONFIG)
    audit(again, out=tmp_path / "again")
    for path in sorted((out / "results").iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / "results" / path.name).read_bytes()


def test_an_interrupted_audit_goes_on(target: nn.Module, tmp_path: Path) -> None:
    class StopError(KeyboardInterrupt):
        pass

    def stop(what: str, number: int, total: int) -> None:
        if (what, number) == ("shadow models", 3):
            raise StopError

    with pytest.raises(StopError):
        audit(target, out=tmp_path / "run", progress=stop)
    stored = sorted((tmp_path / "run" / "shadows").glob("weights-*"))
    assert 2 <= len(stored) < 6
    times = [path.stat().st_mtime_ns for path in stored]
    report = audit(target, out=tmp_path / "run")
    assert [path.stat().st_mtime_ns for path in stored] == times
    assert by_label(report)


def test_scores_are_written_when_a_report_in_memory_is_saved(
    target: nn.Module, tmp_path: Path
) -> None:
    audit(target, attacks=["loss_threshold"]).save(tmp_path / "audit")
    assert (tmp_path / "audit" / "results" / "loss_threshold.parquet").is_file()
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["model"]["task"]


def test_a_model_in_training_mode_is_audited_in_eval_mode_and_said(target: nn.Module) -> None:
    quiet = audit(target.eval(), attacks=["loss_threshold"])
    loud = audit(target.train(), attacks=["loss_threshold"])
    assert quiet.attacks == loud.attacks
    assert quiet.model is not None
    assert loud.model is not None
    assert not any("training mode" in note for note in quiet.model.notes)
    assert any("training mode" in note for note in loud.model.notes)


def test_answers_of_any_object_are_enough_for_black_box_attacks() -> None:
    inputs, labels = digits()
    forest = RandomForestClassifier(30, random_state=0).fit(inputs[:150], labels[:150])
    report = audit(forest, attacks=["loss_threshold"], training=None)
    result = by_label(report)["loss_threshold"].result
    assert result is not None
    assert result.metrics["auc"].low > 0.8  # a forest knows its members by heart
    assert report.model is not None
    assert report.model.target == "answers only"
    assert by_label(report)["loss_threshold"].decisions is None  # nothing to calibrate on
    with pytest.raises(ObservationError, match="final-model"):
        audit(forest, attacks=["white_box"], training=None)


def test_a_users_training_function_serves_any_kind_of_model() -> None:
    inputs, labels = digits()

    def train(model: None, dataset: Any, *, seed: int) -> Any:
        pairs = [dataset[row] for row in range(len(dataset))]
        x, y = np.stack([p[0] for p in pairs]), np.asarray([int(p[1]) for p in pairs])
        return RandomForestClassifier(15, random_state=seed).fit(x, y).predict_proba

    forest = RandomForestClassifier(15, random_state=0).fit(inputs[:150], labels[:150])
    report = audit(forest, train_fn=train, training=None)
    assert by_label(report)["rmia"].decisions is not None


def test_regression_works_on_squared_errors() -> None:
    inputs, wanted = load_diabetes(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(inputs))
    x = (inputs[order] / inputs.std()).astype(np.float32)
    y = ((wanted[order] - wanted.mean()) / wanted.std()).astype(np.float32)
    build = fresh_builder(nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 1)))
    table = {"epochs": 400, "learning_rate": 5e-3, "loss": "mse"}
    members = Records(np.arange(60), x[:60], np.zeros(60, np.int64), y[:60])
    model = train_one(build, Job(members, 0), TrainingConfig.model_validate(table))
    report = audit(model, population=(x, y), members=range(60), training=table)
    assert report.model is not None
    assert report.model.task == "regression"
    assert report.model.utility[0].train_accuracy is None
    for record in by_label(report).values():
        assert record.result is not None
        assert record.result.metrics["auc"].low > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": [0, 1], "non_members": [1, 2]}, "stand in both"),
        ({"members": [0, 1000]}, "out of range"),
        ({"training": {"epoch": 3}}, "Did you mean 'epochs'"),
        ({"training": None, "attacks": ["rmia"]}, None),
        ({"train_fn": print}, "only one of the two"),
        ({"attacks": ["rmai"]}, "Did you mean 'rmia'"),
        ({"population": (digits()[0], digits()[1] + 5)}, "the model has classes 0 to 9"),
        ({"population": (digits()[0][:, :60], digits()[1])}, "the model refuses them"),
    ],
)
def test_bad_input_says_what_to_do(
    target: nn.Module, changes: dict[str, Any], message: str | None
) -> None:
    if message is None:  # the others go on, and the report says why this one does not
        (record,) = audit(target, **changes).attacks
        assert isinstance(record, UnavailableRecord)
        assert "Give train_fn=train or training=" in record.reason
        return
    with pytest.raises(InputError, match=message):
        audit(target, **changes)


def test_weights_that_are_nan_name_a_record(target: nn.Module) -> None:
    broken = fresh_builder(target)(0)
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(torch.nan)
    with pytest.raises(InputError, match=r"logits of record \d+"):
        audit(broken, attacks=["loss_threshold"], training=None)


def test_a_factory_of_another_architecture_names_the_parameter(target: nn.Module) -> None:
    with pytest.raises(InputError, match=r"parameter '0.weight'.*the model has \(64, 64\)"):
        audit(target, model_factory=lambda: nn.Sequential(nn.Linear(64, 10)))


def test_a_proxy_must_fit() -> None:
    with pytest.raises(InputError, match="is neither a torch module"):
        audit(mlp(), proxy=ModelProxy(3, digits(), range(10)), attacks=["loss_threshold"])


def test_configurations_pass_through() -> None:
    assert training_config(CONFIG) is CONFIG


def test_another_audit_never_inherits_results(target: nn.Module, tmp_path: Path) -> None:
    audit(target, out=tmp_path / "run", attacks=["loss_threshold"])
    with pytest.raises(InputError, match="another model, population, split or seed"):
        audit(fresh_builder(target)(5), out=tmp_path / "run", attacks=["population"])
    with pytest.raises(InputError, match="another model, population, split or seed"):
        audit(target, out=tmp_path / "run", seed=1)
    audit(target, out=tmp_path / "run", attacks=["population"])
    render(RunDirectory.open(tmp_path / "run"))
    report = load_report(tmp_path / "run" / "report.json")
    assert [a.label for a in report.attacks] == ["population"]


def test_an_out_directory_of_something_else_is_refused(target: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        audit(target, out=tmp_path)

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
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
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
    needs = "final-model.*white-box attacks need the torch module itself"
    with pytest.raises(ObservationError, match=needs):
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
        ({"training": "adam"}, "training = 'adam': must be a table"),
        ({"proxy": 1}, "proxy = 1: is no ModelProxy"),
        ({"train_size": 1}, "train_size = 1: must be at least 2"),
        ({"workers": 0}, "workers = 0: must be at least 1"),
        ({"seed": -1}, "seed = -1: must not be negative"),
        ({"num_targets": 8}, 'the game "model" looks at the one model'),
        ({"records": [3]}, "the game 'model' is about all candidates"),
        ({"game": "record", "records": [3]}, "the game 'record' is about all candidates"),
        ({"game": "leave-one-out", "records": []}, "names no record"),
        ({"game": "leave-one-out", "records": [3, 3]}, "records = 3: stands there more than once"),
        ({"game": "leave-one-out", "records": [3, 1000]}, "records = 1000: is no candidate"),
        (
            {"game": "leave-one-out", "non_members": range(200, 300), "records": [200]},
            "records = 200: is a non-member",
        ),
        (
            {"population": (digits()[0], digits()[1] + 0.5)},
            "a class is a whole number from 0, and the model has 10 outputs",
        ),
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


def test_nothing_is_touched_where_the_input_is_wrong(target: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for overwrite in (False, True):  # of a directory that is not there yet
        with pytest.raises(InputError, match="out of range"):
            audit(target, members=[5000], out=out, overwrite=overwrite)
        assert not out.exists()
    audit(target, out=out, attacks=["loss_threshold"])
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for changes in (
        {"members": [5000]},
        {"training": {"epoch": 3}},
        {"proxy": ModelProxy(mlp(), digits(), [5000])},
    ):
        with pytest.raises(InputError):
            audit(target, out=out, overwrite=True, **changes)
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_place_that_is_taken_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    class Silent(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise AssertionError("was asked")

    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"not empty|run directories only"):
            audit(Silent(), out=tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_what_an_interruption_leaves_can_be_overwritten(target: nn.Module, tmp_path: Path) -> None:
    def stop(what: str, number: int, total: int) -> None:
        raise KeyboardInterrupt

    for overwrite in (False, True):
        with pytest.raises(KeyboardInterrupt):
            audit(target, out=tmp_path / "run", overwrite=overwrite, progress=stop)
    audit(target, out=tmp_path / "run", overwrite=True, attacks=["loss_threshold"])


def test_probabilities_of_a_module_are_not_taken_for_logits(target: nn.Module) -> None:
    cheap = ["loss_threshold", {"name": "rmia", "num_shadow_models": 4}]
    table = {"epochs": 3}
    logits = audit(target, attacks=cheap, training=table)
    softmax = nn.Sequential(*target, nn.Softmax(dim=1))  # type: ignore[misc]
    found = audit(softmax, attacks=cheap, training=table)
    for label, record in by_label(logits).items():
        other = by_label(found)[label]
        assert record.result is not None
        assert other.result is not None
        assert other.result.metrics["auc"].value == pytest.approx(
            record.result.metrics["auc"].value, abs=1e-3
        )
    assert logits.model is not None
    assert found.model is not None
    assert any("answers probabilities, not logits" in note for note in found.model.notes)
    assert not any("probabilities" in note for note in logits.model.notes)
    assert logits.model.gradient_norms is not None
    assert found.model.gradient_norms is not None
    assert found.model.gradient_norms.edges == pytest.approx(
        logits.model.gradient_norms.edges, rel=1e-2
    )


def test_a_training_function_gets_the_users_module_and_its_models_answer_alike(
    target: nn.Module,
) -> None:
    def train(model: Any, dataset: Any, *, seed: int) -> Any:
        pairs = [dataset[row] for row in range(len(dataset))]
        inputs, wanted = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(40):
            answers = model(inputs)
            sums.append(float(answers.detach()[0].sum()))
            loss = nn.functional.cross_entropy(answers.log() if ends else answers, wanted)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return model

    found = []
    for ends in ([], [nn.Softmax(dim=1)]):
        sums = list[float]()
        report = audit(
            nn.Sequential(*target, *ends),  # type: ignore[misc]
            train_fn=train,
            training=None,
            attacks=[{"name": "rmia", "num_shadow_models": 4}],
        )
        result = by_label(report)["rmia"].result
        assert result is not None
        found.append(result.metrics["auc"].value)
    assert sums == pytest.approx([1.0] * len(sums))  # the softmax as it is
    assert found[1] == pytest.approx(found[0], abs=5e-3)


def diabetes() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    inputs, wanted = load_diabetes(return_X_y=True)
    return inputs.astype(np.float32), wanted.astype(np.float32)


@pytest.mark.parametrize("form", ["object", "function", "column"])
def test_regression_of_anything_that_predicts(form: str) -> None:
    x, y = diabetes()
    forest = RandomForestRegressor(30, random_state=0).fit(x[:100], y[:100])
    forms = {
        "object": forest,
        "function": forest.predict,
        "column": lambda inputs: forest.predict(inputs)[:, None],
    }
    report = audit(
        forms[form], population=(x, y), members=range(100), attacks="loss_threshold", training=None
    )
    assert report.model is not None
    assert report.model.task == "regression"
    result = by_label(report)["loss_threshold"].result
    assert result is not None
    assert result.metrics["auc"].low > 0.5


def test_shadow_regressors_are_asked_for_numbers() -> None:
    x, y = diabetes()

    def train(model: None, dataset: Any, *, seed: int) -> Any:
        pairs = [dataset[row] for row in range(len(dataset))]
        inputs, wanted = np.stack([p[0] for p in pairs]), [float(p[1]) for p in pairs]
        return RandomForestRegressor(5, random_state=seed).fit(inputs, wanted).predict

    forest = RandomForestRegressor(5, random_state=0).fit(x[:100], y[:100])
    cheap = [{"name": "rmia", "num_shadow_models": 4}]
    options: dict[str, Any] = {"population": (x, y), "members": range(100), "training": None}
    report = audit(forest, train_fn=train, attacks=cheap, **options)
    assert by_label(report)["rmia"].result is not None


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda x: np.full((len(x), 10), 0.3), "= 3.0: .*must sum to 1"),
        (lambda x: x[:, 0] - 5, r"one probability a class.*task = \"regression\""),
        (lambda x: np.tile([2.0, -1.0], (len(x), 5)), r"between 0 and 1.*task = \"regression\""),
    ],
)
def test_what_is_no_probability_is_refused(answers: Any, message: str) -> None:
    changes: dict[str, Any] = {"attacks": ["loss_threshold"], "training": None}
    with pytest.raises(InputError, match=message):
        audit(answers, task="classification", **changes)


def test_float_labels_are_classes_of_a_model_with_many_outputs(target: nn.Module) -> None:
    inputs, labels = digits()
    cheap = {"attacks": "loss_threshold", "training": None}  # one attack, as plain text
    found = audit(target, population=(inputs, labels.astype(np.float64)), **cheap)
    assert found.attacks == audit(target, **cheap).attacks


def test_class_labels_of_a_model_with_one_output_name_the_task() -> None:
    message = r"one output tells no classes apart.*task = \"regression\".*two outputs"
    with pytest.raises(InputError, match=message):
        audit(nn.Linear(64, 1), attacks=["loss_threshold"], training=None)


class Pair(nn.Module):
    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, inputs


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Pair(), "a module must return one tensor.*returns the logits alone"),
        (nn.Linear(64, 10).double(), "Inputs are always given as float32"),
        (nn.Embedding(20, 10), "Inputs are always given as float32"),
    ],
    ids=["tuple", "double", "embedding"],
)
def test_a_module_that_cannot_be_asked_says_why(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        audit(model, attacks=["loss_threshold"], training=None)

"""A run directory: private, never inside a Flower app, never deleted by mistake, never believed."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fl_audit.errors import AuditError, RunDirectoryError
from fl_audit.factories import ModelSpec
from fl_audit.files import write_text
from fl_audit.game import GameRules, GameTruth, MembershipGame, write_game
from fl_audit.local_training import LocalTraining, LocalTrainings
from fl_audit.records import Records
from fl_audit.run_directory import Problem, RunDirectory, RunManifest, ThreatModelRecord
from fl_audit.targets import ClientTargets, write_targets
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Reply, TraceWriter


def manifest(**changes: Any) -> RunManifest:
    return RunManifest(
        title="A run",
        created="2026-01-01T00:00:00+00:00",
        seed=1,
        engine="local",
        versions={"fl-audit": "0.1.0"},
        threat_model=ThreatModelRecord.of(PRESETS["curious-server"]),
        strategy={"name": "FedAvg"},
        defence={"name": "none"},
        model=ModelSpec(factory="simulations.models:mlp", settings={"hidden": [8]}),
        local_training=LocalTrainings(clients={3: LocalTraining(learning_rate=0.5)}),
    ).model_copy(update=changes)


def fill(run: RunDirectory) -> RunDirectory:
    """Everything that is ever written, but the report."""
    run.write_manifest(manifest())
    write_text(run.scenario_file, "seed = 1\n")
    weights = {"w": np.zeros(2, dtype=np.float32)}
    writer = TraceWriter(run.trace)
    writer.begin_round(1, weights, [0])
    writer.add_replies(1, [Reply(0, weights, {"num-examples": 1})])
    writer.end_round(1, weights, {})
    records = Records(np.arange(2), np.zeros((2, 3), dtype=np.float32), np.zeros(2, dtype=np.int64))
    rules = GameRules(decided_by="a coin", non_members_per_member=1, groups=1, null_groups=1)
    coins = np.array([True, False])
    truth = GameTruth(coins, np.zeros(2, dtype=np.int64), coins)
    write_game(run, MembershipGame(rules, records, records, records, 2), truth)
    used = np.ones((1, 2), dtype=np.bool_)
    own = ClientTargets(0, records.inputs, records.labels, used)
    write_targets(run.truth / "targets", [own])
    write_text(run.result_file("cosine.json"), "{}")
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return fill(RunDirectory.create(tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- what is written ---------------------------------------------------------------------------


def test_everything_in_it_is_private_and_nothing_is_a_pickle(run: RunDirectory) -> None:
    for path in [run.path, *run.path.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    kinds: dict[str, Callable[[Any], object]] = {
        "json": json.loads,
        "toml": str,
        "safetensors": bytes,
    }
    for name, data in files(run.path).items():
        kinds[name.rpartition(".")[2]](data.decode() if name.endswith(".json") else data)
        if name.endswith(".safetensors"):
            load_file(run.path / name)


def test_a_manifest_comes_back(run: RunDirectory) -> None:
    read = RunDirectory.open(run.path).read_manifest()
    assert read == manifest()
    assert read.threat_model.threat_model() == PRESETS["curious-server"]
    assert read.local_training is not None
    assert read.local_training.of(3).learning_rate == 0.5


@pytest.mark.parametrize("preset", PRESETS)
def test_a_threat_model_comes_back(preset: str) -> None:
    record = ThreatModelRecord.of(PRESETS[preset])
    read = ThreatModelRecord.model_validate_json(record.model_dump_json())
    assert read.threat_model() == PRESETS[preset]


def test_a_nasty_problem_is_written_clean(run: RunDirectory) -> None:
    problem = Problem(where="client\x1b[2J", message="a\u202eb\ud800c\nd")
    run.write_manifest(manifest(problems=[problem]))
    (read,) = run.read_manifest().problems
    assert (read.where, read.message) == ("client", "a b c d")


# -- creating ----------------------------------------------------------------------------------


def test_parents_are_created_and_an_empty_folder_is_taken(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "a" / "b")
    (tmp_path / "empty").mkdir()
    RunDirectory.create(tmp_path / "empty")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_run_is_never_touched(overwrite: bool, tmp_path: Path) -> None:
    thesis, others, damaged = tmp_path / "thesis", tmp_path / "others", tmp_path / "damaged"
    for folder in (thesis, others, damaged):
        folder.mkdir()
    (thesis / "chapter1.tex").write_text("years of work")
    (others / "run.json").write_text('{"name": "another tool", "schema_version": 1}')
    (damaged / "run.json").write_text('{"schema_version": 1, "engi')
    (tmp_path / "file").write_text("a file")
    before = files(tmp_path)
    for place in ("thesis", "others", "damaged", "file", "file/below", "x" * 300):
        with pytest.raises(RunDirectoryError):
            RunDirectory.create(tmp_path / place, overwrite=overwrite)
    assert files(tmp_path) == before


def test_a_run_is_kept_unless_overwrite_is_said(run: RunDirectory) -> None:
    before = files(run.path)
    with pytest.raises(RunDirectoryError, match="pass --overwrite"):
        RunDirectory.create(run.path)
    assert files(run.path) == before


def test_overwrite_empties_a_run(run: RunDirectory) -> None:
    (run.path / "report.html.part").touch()  # left by a killed process
    assert RunDirectory.create(run.path, overwrite=True).path == run.path
    assert list(run.path.iterdir()) == []


def test_overwrite_reads_manifests_of_newer_versions(run: RunDirectory) -> None:
    content = json.loads(run.manifest_file.read_text())
    run.manifest_file.write_text(json.dumps({**content, "schema_version": 2, "new": 1}))
    RunDirectory.create(run.path, overwrite=True)


def test_overwrite_spares_a_run_with_something_else_in_it(run: RunDirectory) -> None:
    """`--out .` in an empty folder that has become a workplace since."""
    (run.path / "notes.md").write_text("mine")
    before = files(run.path)
    with pytest.raises(RunDirectoryError, match=r"fl-audit did not write 'notes\.md'"):
        RunDirectory.create(run.path, overwrite=True)
    assert files(run.path) == before


def test_overwrite_never_follows_links_out(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").touch()
    run.scenario_file.unlink()
    run.scenario_file.symlink_to(tmp_path / "mine" / "photo.jpg")
    (run.trace / "round_0001" / "link").symlink_to(tmp_path / "mine", target_is_directory=True)
    (run.path / "report.html").symlink_to(tmp_path / "mine", target_is_directory=True)
    RunDirectory.create(run.path, overwrite=True)
    assert list(run.path.iterdir()) == []
    assert (tmp_path / "mine" / "photo.jpg").exists()


def test_a_link_to_a_run_is_as_good_as_the_run(run: RunDirectory, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(run.path, target_is_directory=True)
    assert RunDirectory.open(link).read_manifest().seed == 1
    RunDirectory.create(link, overwrite=True)
    assert link.is_symlink()
    assert list(run.path.iterdir()) == []


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(RunDirectoryError):
        RunDirectory.create(tmp_path / "a" / "run")


# -- Flower apps -------------------------------------------------------------------------------


@pytest.fixture
def flower_app(tmp_path: Path) -> Path:
    app = tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text('[tool.flwr.app]\npublisher = "me"\n')
    return app


@pytest.mark.parametrize("place", ["app", "app/runs/1", "app/../app/runs", "link", "link/1"])
def test_a_flower_app_is_refused(place: str, flower_app: Path) -> None:
    """Its folder is shipped to every node: the trace would go with it."""
    (flower_app / "data").mkdir()
    (flower_app.parent / "link").symlink_to(flower_app / "data", target_is_directory=True)
    before = sorted(flower_app.rglob("*"))
    with pytest.raises(RunDirectoryError, match="inside the Flower app"):
        RunDirectory.create(flower_app.parent / place)
    assert sorted(flower_app.rglob("*")) == before


def test_beside_a_flower_app_is_fine(flower_app: Path) -> None:
    RunDirectory.create(flower_app / ".." / "runs")


@pytest.mark.parametrize(
    "text",
    [
        "[tool.ruff]\n",
        "tool = 1\n",
        "tool.flwr = 'app'\n",
        "[tool.flwr.federations]\n",
        "not toml",
        "a = " + "[" * 5000,
    ],
)
def test_other_projects_are_no_flower_apps(text: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    RunDirectory.create(tmp_path / "runs")


# -- a run directory from an enemy -------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "run/trace", "run/run.json"])
def test_what_is_no_run_cannot_be_opened(name: str, run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError):
        RunDirectory.open(run.path.parent / name)


Damage = Callable[[dict[str, Any]], Any]
DAMAGES: dict[str, str | bytes | Damage] = {
    "not UTF-8": b'{"title": "\xff"}',
    "truncated": '{"schema_version": 1, "title',
    "a list": "[]",
    "deep": "[" * 100_000,
    "NaN": lambda c: {**c, "strategy": {"lr": float("nan")}},
    "deep settings": lambda c: {**c, "strategy": json.loads('{"a":' * 70 + "1" + "}" * 70)},
    "half a character": lambda c: {**c, "title": "\ud800"},
    "an unknown key": lambda c: {**c, "extra": 1},
    "code as a model": lambda c: {**c, "model": {"factory": "os.system('x')", "settings": {}}},
    "a newer schema": lambda c: {**c, "schema_version": 2},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_is_refused(name: str, run: RunDirectory) -> None:
    damage = DAMAGES[name]
    if callable(damage):
        damage = json.dumps(damage(json.loads(run.manifest_file.read_text())))
    run.manifest_file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    with pytest.raises(RunDirectoryError, match=r"run\.json") as caught:
        RunDirectory.open(run.path).read_manifest()
    assert ("Upgrade" in caught.value.remedy) == (name == "a newer schema")


def test_an_unknown_threat_model_flag_is_refused(run: RunDirectory) -> None:
    content = json.loads(run.manifest_file.read_text())
    content["threat_model"]["sees"] = ["everything\x1b[2J" + "x" * 10_000]
    run.manifest_file.write_text(json.dumps(content))
    read = RunDirectory.open(run.path).read_manifest()
    with pytest.raises(AuditError, match="unknown observation") as caught:
        read.threat_model.threat_model()
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name", ["run.json", "results", "results/cosine.json", "game/truth", "trace/round_0001"]
)
def test_links_inside_are_refused(name: str, run: RunDirectory, tmp_path: Path) -> None:
    """Else results would be written to, and files read from, wherever an enemy points."""
    (run.path / name).rename(tmp_path / "elsewhere")
    (run.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunDirectoryError, match="this is a link or a device"):
        RunDirectory.open(run.path)

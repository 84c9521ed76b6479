"""audit.toml: the same audit as from Python, from files; and what is wrong with a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from typer.testing import CliRunner

import fl_audit
from fl_audit.cli.main import app
from fl_audit.errors import InputError
from fl_audit.results import MembershipRecord
from simulations.model_audit import audit_from_file, load_model_audit

CODE = """
import numpy as np
from torch import nn

def build(hidden=32):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

def broken():
    raise RuntimeError("no")

def predict(inputs):
    p = np.exp(-inputs[:, :10])
    return p / p.sum(1, keepdims=True)

def train(model, dataset, *, seed):
    return model
"""
AUDIT = """
title = "Digits"
[target]
model = "their_model:build"
weights = "model.safetensors"
[data]
population = "population.npz"
[split]
members = "members.npy"
[training]
epochs = 5
[audit]
attacks = ["loss_threshold", { name = "rmia", num_shadow_models = 4 }]
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder with a model, its data and an audit.toml."""
    (tmp_path / "their_model.py").write_text(CODE)
    inputs, labels = load_digits(return_X_y=True)
    inputs, labels = (inputs[:800] / 16).astype(np.float32), labels[:800]
    np.savez(tmp_path / "population.npz", inputs=inputs, labels=labels)
    frame = pd.DataFrame(inputs, columns=[f"pixel{n}" for n in range(64)]).assign(digit=labels)
    frame.to_parquet(tmp_path / "population.parquet")
    members = np.random.default_rng(0).permutation(800)[:150]
    np.save(tmp_path / "members.npy", members)
    (tmp_path / "members.txt").write_text("\n".join(map(str, members)))
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "audit.toml").write_text(AUDIT)
    sys.path.insert(0, str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))
    sys.modules.pop("their_model", None)


def test_files_give_what_python_gives(home: Path) -> None:
    report = audit_from_file(home / "audit.toml", out=home / "out")
    import their_model  # type: ignore[import-not-found]

    with np.load(home / "population.npz") as data:
        population = data["inputs"], data["labels"]
    model = their_model.build()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(home / "model.safetensors"))
    same = fl_audit.audit_model(
        model,
        population,
        members=np.load(home / "members.npy"),
        training={"epochs": 5},
        model_factory=their_model.build,
        attacks=["loss_threshold", {"name": "rmia", "num_shadow_models": 4}],
        seed=0,
    )
    assert report.attacks == same.attacks
    assert report.model == same.model
    assert report.run.title == "Digits"
    assert load_model_audit(home / "out" / "audit.toml") == load_model_audit(home / "audit.toml")


@pytest.mark.parametrize(
    "overrides",
    [
        ["target.weights=model.pt", "split.members=members.txt"],
        ["data.population=population.parquet", "data.label_column=digit"],
    ],
)
def test_other_forms_of_the_same_files(home: Path, overrides: list[str]) -> None:
    cheap = ['audit.attacks=["loss_threshold"]']
    plain = audit_from_file(home / "audit.toml", out=home / "a", overrides=cheap)
    other = audit_from_file(home / "audit.toml", out=home / "b", overrides=[*cheap, *overrides])
    assert plain.attacks == other.attacks


def test_a_function_that_predicts_is_a_target(home: Path) -> None:
    text = AUDIT.replace('model = "their_model:build"\nweights = "model.safetensors"', "").replace(
        "[data]", 'predict = "their_model:predict"\n[data]'
    )
    (home / "audit.toml").write_text(text.replace("epochs = 5", ""))
    overrides = ['audit.attacks=["loss_threshold"]']
    report = audit_from_file(home / "audit.toml", out=home / "out", overrides=overrides)
    assert report.model is not None
    assert report.model.target == "answers only"
    assert isinstance(report.attacks[0], MembershipRecord)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split.membres=[1]", r"split.membres = .*unknown key. Did you mean 'members'"),
        ("training.epoch=1", "Did you mean 'epochs'"),
        ("audit.game=modle", "audit.game"),
        ("target.predict=their_model:predict", "needs exactly one of them"),
        ("target.weights=nothing.safetensors", "cannot be read as weights"),
        ("target.weights=their_model.py", "cannot be read as weights"),
        ("target.model=their_model:broken", "raised RuntimeError: no"),
        ("target.settings.hidden=7", "the model needs shape"),
        ("data.population=nothing.npz", "cannot be read"),
        ("data.population=population.parquet", "is no column of the table"),
        ("split.members=audit.toml", "cannot be read as row numbers"),
        ("split.members=[900]", "out of range"),
        ("training.function=their_model:nothing", "cannot be imported"),
    ],
)
def test_what_is_wrong_is_named(home: Path, override: str, message: str) -> None:
    if override.startswith("training.function"):
        (home / "audit.toml").write_text(AUDIT.replace("epochs = 5", ""))
    with pytest.raises(InputError, match=message):
        audit_from_file(home / "audit.toml", out=home / "out", overrides=[override])


def test_a_pickle_is_never_opened(home: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(home / "opened"),))  # type: ignore[return-value]

    torch.save({"state_dict": Evil()}, home / "model.pt")
    np.save(home / "members.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    for override in ("target.weights=model.pt", "split.members=members.npy"):
        with pytest.raises(InputError):
            audit_from_file(home / "audit.toml", out=home / "out", overrides=[override])
    assert not (home / "opened").exists()


def test_the_command_prints_and_says_how_to_mend(home: Path) -> None:
    runner = CliRunner()
    arguments = ["model", str(home / "audit.toml"), "--out", str(home / "out")]
    done = runner.invoke(app, [*arguments, "--set", 'audit.attacks=["loss_threshold"]'])
    assert done.exit_code == 0, done.output
    assert "loss_threshold" in done.output
    assert (home / "out" / "report.html").is_file()
    failed = runner.invoke(
        app, [*arguments, "--overwrite", "--set", 'audit.attacks=[{name="rmia",mode="offlin"}]']
    )
    assert isinstance(failed.exception, InputError)


def test_a_typo_costs_no_run_that_stands(home: Path) -> None:
    cheap = ["audit.attacks=loss_threshold"]
    audit_from_file(home / "audit.toml", out=home / "out", overrides=cheap)
    before = (home / "out" / "report.json").read_bytes()
    wrong = [*cheap, "split.members=[900]"]
    with pytest.raises(InputError, match="out of range"):
        audit_from_file(home / "audit.toml", out=home / "out", overrides=wrong, overwrite=True)
    assert (home / "out" / "report.json").read_bytes() == before
    audit_from_file(home / "audit.toml", out=home / "out", overrides=cheap, overwrite=True)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"junk", "no file of plain numpy arrays"),
        (b"", "no file of plain numpy arrays"),
        (b"PK\x03\x04 cut off", "no file of plain numpy arrays"),
        ("array", "no file of plain numpy arrays"),
        ("other names", "no array of the name 'inputs'"),
    ],
)
def test_a_file_that_holds_no_records(home: Path, content: bytes | str, why: str) -> None:
    path = home / "junk.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "array":
        with path.open("wb") as file:
            np.save(file, np.arange(3))
    else:
        np.savez(path, x=np.arange(3))
    with pytest.raises(InputError, match=why) as caught:
        audit_from_file(
            home / "audit.toml", out=home / "out", overrides=["data.population=junk.npz"]
        )
    assert "pickle=" not in str(caught.value)


def test_row_numbers_are_whole(home: Path) -> None:
    np.save(home / "members.npy", np.arange(10.0))
    with pytest.raises(InputError, match="row numbers are whole numbers"):
        audit_from_file(home / "audit.toml", out=home / "out")
    (home / "members.npy").write_bytes(b"junk")
    with pytest.raises(InputError, match="no file of plain numpy arrays") as caught:
        audit_from_file(home / "audit.toml", out=home / "out")
    assert "allow_pickle" not in str(caught.value)


def test_weights_of_a_wrapped_model_name_the_prefix(home: Path) -> None:
    state = torch.load(home / "model.pt", weights_only=True)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, home / "model.pt")
    overrides = ["target.weights=model.pt"]
    with pytest.raises(InputError, match=r"start with 'module\.'.*Take it off") as caught:
        audit_from_file(home / "audit.toml", out=home / "out", overrides=overrides)
    assert "trace" not in str(caught.value)

"""`audit.toml`: a trained model, its data and its attacks, from files."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, JsonValue, ValidationError
from safetensors.numpy import load_file

from attacks.games import Game
from attacks.model_audit import DEFAULT_ATTACKS, audit_model
from attacks.population import TaskName
from fl_audit.errors import InputError, did_you_mean, shorten
from fl_audit.factories import load_attribute
from fl_audit.files import write_text
from fl_audit.report.model import AuditReport
from fl_audit.settings import apply_override
from fl_audit.trace.query import load_weights
from simulations.data import load_dataset
from simulations.scenario import Data, Table, dump_toml

Progress = Callable[[str, int, int], None]
Rows = list[int] | str
_FACTORY = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def _several(attacks: object) -> object:
    """One attack may stand alone: attacks = "lira"."""
    return [attacks] if isinstance(attacks, str | dict) else attacks


class TargetTable(Table):
    """The audited model: a factory with weights, or a function that answers probabilities."""

    model: str | None = Field(
        default=None, pattern=_FACTORY, description="Factory, module:function"
    )
    settings: dict[str, JsonValue] = Field(default_factory=dict, description="Its arguments")
    weights: str | None = Field(default=None, description="safetensors, or torch (weights only)")
    predict: str | None = Field(
        default=None, pattern=_FACTORY, description="Function records -> probabilities, or numbers"
    )


class DataTable(Table):
    """The records: an .npz or .parquet file, a folder or hub name, or "module:function"."""

    population: str
    label_column: str = "label"
    input_column: str | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict, description="module:function")
    task: TaskName | None = None
    auxiliary: str | None = Field(default=None, description="A second data set, same forms")


class SplitTable(Table):
    """Who is what: row numbers, or a file of them (.npy, or .txt with one a line)."""

    members: Rows
    non_members: Rows | None = None
    auxiliary: Rows | None = None


class TrainingTable(Table):
    """How shadow models are trained: a function, or the keys of the default trainer."""

    function: str | None = Field(default=None, pattern=_FACTORY)
    config: dict[str, JsonValue] = Field(default_factory=dict)
    train_size: int | None = Field(default=None, ge=2)
    workers: int | None = Field(default=None, ge=1)
    ray_address: str | None = None


class AttackTable(Table):
    """What is asked."""

    attacks: Annotated[list[str | dict[str, JsonValue]], BeforeValidator(_several)] = Field(
        default=list(DEFAULT_ATTACKS)
    )
    game: Game = "model"
    num_targets: int | None = Field(default=None, ge=4, description="Not of game model; 8")
    records: list[int] | None = Field(default=None, description="leave-one-out: which members")


class ModelAudit(Table):
    """A whole audit.toml."""

    title: str = "Audit of a trained model"
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    target: TargetTable
    data: DataTable
    split: SplitTable
    training: TrainingTable = TrainingTable()
    audit: AttackTable = AttackTable()


def load_model_audit(path: Path, overrides: Sequence[str] = ()) -> ModelAudit:
    """Read an audit.toml.

    Raises:
        InputError: If it cannot be read, a key is unknown or a value impossible.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            "audit", str(path), f"cannot be read ({error})", "Give the path of a TOML file."
        ) from error
    for override in overrides:
        apply_override(tables, override)
    _lift_training(tables)
    try:
        return ModelAudit.model_validate(tables)
    except ValidationError as error:
        raise _explain(error) from error


def audit_from_file(
    path: Path,
    *,
    out: Path,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AuditReport:
    """Run the audit that a file describes; its paths are relative to the file.

    Raises:
        InputError: If something in it does not fit together.
    """
    wanted, home = load_model_audit(path, overrides), path.resolve().parent
    target, split, training, audit = wanted.target, wanted.split, wanted.training, wanted.audit
    factory = _factory(target)
    second = wanted.data.auxiliary
    if second is not None and split.auxiliary is not None:
        raise InputError(
            "data.auxiliary, split.auxiliary",
            second,
            "name two sets of auxiliary records",
            "Leave one of them out.",
        )
    auxiliary = _rows(split.auxiliary, home, "split.auxiliary")
    report = audit_model(
        _model(target, factory, home),
        _records(wanted.data.population, wanted.data, home),
        members=_rows(split.members, home, "split.members"),
        non_members=_rows(split.non_members, home, "split.non_members"),
        auxiliary=auxiliary if second is None else _records(second, wanted.data, home),
        train_fn=training.function,
        training=dict(training.config) or None,
        model_factory=factory,
        attacks=audit.attacks,
        game=audit.game,
        num_targets=audit.num_targets,
        records=audit.records,
        task=wanted.data.task,
        train_size=training.train_size,
        out=out,
        overwrite=overwrite,
        title=wanted.title,
        workers=training.workers,
        ray_address=training.ray_address,
        device=wanted.device,
        seed=wanted.seed,
        progress=progress,
    )
    write_text(out / "audit.toml", dump_toml(wanted))
    return report


def _lift_training(tables: dict[str, Any]) -> None:
    """`[training] epochs = 5` beside `function`: the trainer's own keys go to its config."""
    table = tables.get("training")
    if isinstance(table, dict):
        own = {key: table.pop(key) for key in list(table) if key not in TrainingTable.model_fields}
        if own:
            table["config"] = {**own, **table.get("config", {})}


def _factory(target: TargetTable) -> Callable[[], Any] | None:
    if target.model is None:
        return None
    function = load_attribute(target.model, "target.model")
    return lambda: function(**target.settings)


def _model(target: TargetTable, factory: Callable[[], Any] | None, home: Path) -> Any:
    if (target.predict is None) == (target.weights is None):
        raise InputError(
            "target",
            "weights and predict" if target.predict else "neither weights nor predict",
            "needs exactly one of them",
            'Name weights = "model.safetensors" with model = "module:function", or predict = '
            '"module:function".',
        )
    if target.predict is not None:
        return load_attribute(target.predict, "target.predict")
    if factory is None or target.weights is None:
        raise InputError(
            "target.model", None, "weights need their architecture", 'Add model = "module:build".'
        )
    try:
        module = factory()
    except Exception as error:  # users' code raises anything
        raise InputError(
            "target.model",
            target.model,
            f"raised {type(error).__name__}: {error}",
            "Mend the factory, or its arguments in target.settings.",
        ) from error
    load_weights(module, _weights(home / target.weights))
    return module


def _weights(path: Path) -> Mapping[str, NDArray[np.generic]]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        nested = state.get("state_dict") if isinstance(state, dict) else None
        state = nested if isinstance(nested, dict) else state
        return {name: tensor.numpy() for name, tensor in state.items()}
    except Exception as error:  # what a file of somebody else can raise has no common base
        raise InputError(
            "target.weights",
            str(path),
            f"cannot be read as weights ({type(error).__name__}: {shorten(str(error))})",
            "Save a state dict with safetensors, or with torch.save(model.state_dict(), path).",
        ) from error


def _records(name: str, table: DataTable, home: Path) -> Any:
    path = home / name
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".parquet":
        return _parquet(path, table.label_column)
    if ":" in name and "/" not in name:
        function = load_attribute(name, "data.population")
        try:
            return function(**table.settings)
        except Exception as error:  # users' code raises anything
            raise InputError(
                "data.population",
                name,
                f"the function raised {type(error).__name__}: {error}",
                "Mend the function, or its settings in data.settings.",
            ) from error
    place = str(path) if path.is_dir() else name
    column = table.label_column if table.label_column != "label" else None
    data = Data(name=place, label_column=column, input_column=table.input_column)
    return load_dataset(data).records


def _npz(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["inputs"], file["labels"]
    # TypeError: a single array (.npy) under this name; EOFError, BadZipFile: cut off
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise InputError(
            "data",
            str(path),
            f"cannot be read ({_reason(error)})",
            'An .npz file needs arrays "inputs" (n, ...) and "labels" (n,), none of them pickled.',
        ) from error


def _reason(error: Exception) -> str:
    """Why numpy cannot read a file. Its own text advises to unpickle, which runs foreign code."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"no array of the name {str(error.args[0]).split()[0]!r}"
    return "no file of plain numpy arrays"


def _parquet(path: Path, label_column: str) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow has errors of its own
        raise InputError(
            "data", str(path), f"cannot be read ({error})", "Give a parquet file."
        ) from error
    if label_column not in frame:
        raise InputError(
            "data.label_column",
            label_column,
            "is no column of the table",
            f"{did_you_mean(label_column, map(str, frame.columns))}It has: "
            f"{', '.join(map(str, frame.columns[:20]))}",
        )
    labels = frame.pop(label_column)
    words = [str(c) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    if words:
        raise InputError(
            f"column {words[0]!r}",
            str(frame[words[0]].dtype),
            "is not numeric, and the model takes numbers",
            "Encode the table as the model's inputs, one column an input.",
        )
    return frame.to_numpy(np.float32), labels.to_numpy()


def _rows(given: Rows | None, home: Path, name: str) -> NDArray[np.generic] | None:
    if given is None or not isinstance(given, str):
        return None if given is None else np.asarray(given)
    path = home / given
    try:
        if path.suffix == ".npy":
            return _npy(path)
        return np.asarray([int(line) for line in path.read_text(encoding="utf-8").split()])
    except (OSError, ValueError, EOFError) as error:
        why = _reason(error) if path.suffix == ".npy" else str(error)
        raise InputError(
            name,
            str(path),
            f"cannot be read as row numbers ({why})",
            "Give a .npy file of integers or booleans, or a text file with one number a line.",
        ) from error


def _npy(path: Path) -> NDArray[np.generic]:
    found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.ndarray):  # an .npz archive under another name
        found.close()
        raise ValueError("an archive")
    return found


def _explain(error: ValidationError) -> InputError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "audit"
    if first["type"] == "extra_forbidden":
        known = _known(first["loc"][:-1])
        guess = did_you_mean(str(first["loc"][-1]), known)
        return InputError(where, first["input"], "unknown key", f"{guess}Known: {', '.join(known)}")
    if first["type"] == "missing":
        return InputError(where, None, "is missing", "Add it to the file.")
    return InputError(where, first["input"], first["msg"], "Change it in the file or with --set.")


def _known(path: Sequence[int | str]) -> list[str]:
    table: Any = ModelAudit
    for name in path:
        table = table.model_fields[str(name)].annotation
    return sorted(table.model_fields)

"""The run directory: everything one audit saw, did and said, with the truth kept apart.

    run.json          what was run (RunManifest)
    scenario.toml     the scenario as given, where there was one
    trace/            what was seen, round by round
    game/             candidates; `game/truth/` is opened by the scorer only
    results/          one JSON file an attack, its scores beside it
    report.json/.html the report

Directories are 0700 and files 0600: a trace is personal data.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from fl_audit.errors import RunDirectoryError, clean_text
from fl_audit.factories import ModelSpec
from fl_audit.files import private_directory, write_text
from fl_audit.local_training import LocalTrainings
from fl_audit.results import Record
from fl_audit.threat_model import ThreatModel, flag_names, parse_knowledge, parse_observations
from fl_audit.trace import Trace

SCHEMA_VERSION = 1


class ThreatModelRecord(Record):
    """A threat model as it stands in a file."""

    who: Literal["server", "client", "coalition", "observer"]
    activity: Literal["honest-but-curious", "malicious"]
    sees: list[str]
    knows: list[str]

    @classmethod
    def of(cls, model: ThreatModel) -> ThreatModelRecord:
        """The record of a threat model."""
        return cls(
            who=model.who,
            activity=model.activity,
            sees=flag_names(model.sees),
            knows=flag_names(model.knows),
        )

    def threat_model(self) -> ThreatModel:
        """The threat model of this record."""
        return ThreatModel(
            self.who, self.activity, parse_observations(self.sees), parse_knowledge(self.knows)
        )


class Problem(Record):
    """Something that went wrong and did not stop the run."""

    where: str
    round: int | None = None
    message: str


class Utility(Record):
    """How well the global model works after a round, on records nobody trained on."""

    round: int
    loss: float | None = Field(description="Mean cross-entropy, nats; None if it is not finite")
    accuracy: float = Field(ge=0, le=1)


class RunManifest(Record):
    """run.json: what was run, by what, and how far it came."""

    schema_version: Literal[1] = 1
    title: str
    created: str = Field(description="UTC, ISO 8601")
    state: Literal["running", "done", "interrupted", "failed"] = "running"
    seed: int
    engine: str
    versions: dict[str, str]
    threat_model: ThreatModelRecord
    strategy: dict[str, JsonValue]
    defence: dict[str, JsonValue] = Field(description="As configured; not a verdict")
    model: ModelSpec | None = None
    local_training: LocalTrainings | None = None
    planned_rounds: int | None = None
    num_clients: int | None = None
    data: dict[str, JsonValue] = Field(default_factory=dict)
    utility: list[Utility] = Field(default_factory=list)
    problems: list[Problem] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict, description="Stage: wall seconds")


class RunDirectory:
    """Paths of a run directory, and its manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_file = path / "run.json"
        self.scenario_file = path / "scenario.toml"
        self.trace = path / "trace"
        self.game = path / "game"
        self.truth = path / "game" / "truth"
        self.results = path / "results"

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> RunDirectory:
        """Create an empty run directory.

        Args:
            path: Where; its parents are created.
            overwrite: Delete a run directory that stands there. Anything else is refused.

        Raises:
            RunDirectoryError: If the place is taken, or inside a Flower app.
        """
        path = Path(path).absolute()
        _refuse_flower_app(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            _clear(path, overwrite=overwrite)
        try:
            private_directory(path)
        except OSError as error:
            raise RunDirectoryError(
                "out",
                str(path),
                f"cannot be created ({error.strerror})",
                "Choose a place that you may write to.",
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            RunDirectoryError: If there is none.
        """
        run = cls(Path(path).absolute())
        if not run.manifest_file.is_file():
            raise RunDirectoryError(
                "run directory",
                str(path),
                "it holds no run.json",
                "Give a directory that `fl-audit run --out` or CuriousStrategy wrote.",
            )
        return run

    def read_manifest(self) -> RunManifest:
        """Read run.json.

        Raises:
            RunDirectoryError: If it is damaged or of a newer schema.
        """
        try:
            content = json.loads(self.manifest_file.read_text(encoding="utf-8"))
            version = content.get("schema_version", 0)
            if isinstance(version, int) and version > SCHEMA_VERSION:
                raise RunDirectoryError(
                    "run.json schema_version",
                    version,
                    f"this fl-audit reads up to version {SCHEMA_VERSION}",
                    "Upgrade fl-audit to read this run.",
                )
            return RunManifest.model_validate(content)
        except (OSError, ValueError, AttributeError, ValidationError) as error:
            if isinstance(error, RunDirectoryError):
                raise
            raise RunDirectoryError(
                "run.json",
                clean_text(error, 200),
                "the file is truncated or damaged",
                "Restore it from a copy; the trace beside it can still be read.",
            ) from error

    def write_manifest(self, manifest: RunManifest) -> None:
        """Write run.json."""
        write_text(self.manifest_file, manifest.model_dump_json(indent=1))

    def open_trace(self) -> Trace:
        """Open the recorded trace."""
        return Trace.open(self.trace)

    def result_file(self, name: str) -> Path:
        """A path in results/, whose folder is created."""
        return private_directory(self.results) / name


def _clear(path: Path, *, overwrite: bool) -> None:
    is_run = path.is_dir() and (path / "run.json").is_file()
    if not overwrite:
        raise RunDirectoryError(
            "out",
            str(path),
            "it exists and is not empty",
            "Choose another directory, or pass --overwrite to delete the run that is there."
            if is_run
            else "Choose another directory.",
        )
    if not is_run:  # never delete what fl-audit did not write
        raise RunDirectoryError(
            "out",
            str(path),
            "--overwrite deletes run directories only, and this holds no run.json",
            "Choose another directory, or empty this one yourself.",
        )
    shutil.rmtree(path)


def _refuse_flower_app(path: Path) -> None:
    """A Flower app's folder is packed into its next bundle and shipped to every node."""
    for folder in [path, *path.parents]:
        project = folder / "pyproject.toml"
        if not project.is_file():
            continue
        try:
            tables = tomllib.loads(project.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # unreadable for us, so unreadable for Flower
            continue
        if "app" in tables.get("tool", {}).get("flwr", {}):
            raise RunDirectoryError(
                "out",
                str(path),
                f"it lies inside the Flower app {folder}, whose files are shipped to every node",
                "Choose a directory outside the app: a trace holds personal data.",
            )

"""The run directory: everything one audit saw, did and said, with the truth kept apart.

    run.json          what was run (RunManifest)
    scenario.toml     the scenario as given, where there was one
    trace/            what was seen, round by round
    model.json        what was audited, for audits of a trained model (ModelSummary)
    detection.json    what clients could have noticed of an active adversary (Detection)
    shadows/          shadow models and answers of models, by what they depend on
    game/             candidates; `game/truth/` is opened by the scorer only
    results/          one JSON file an attack, its scores beside it
    report.json/.html the report

Directories are 0700 and files 0600: a trace is personal data. `--overwrite` deletes these names
only; a run directory that holds anything else is left alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from fl_audit.errors import RunDirectoryError, clean_text
from fl_audit.factories import ModelSpec
from fl_audit.files import find_special_file, private_directory, read_json, write_text
from fl_audit.local_training import LocalTrainings
from fl_audit.results import Estimate, Record, Text
from fl_audit.threat_model import ThreatModel, flag_names, parse_knowledge, parse_observations
from fl_audit.trace import RecordingPolicy, Trace

SCHEMA_VERSION = 1


class ThreatModelRecord(Record):
    """A threat model as it stands in a file."""

    who: Literal["server", "client", "coalition", "observer"]
    activity: Literal["honest-but-curious", "malicious"]
    sees: list[str]
    knows: list[str]
    controls: list[int] = Field(
        default_factory=list, description="Clients that belong to the adversary"
    )

    @classmethod
    def of(cls, model: ThreatModel) -> ThreatModelRecord:
        """The record of a threat model."""
        return cls(
            who=model.who,
            activity=model.activity,
            sees=flag_names(model.sees),
            knows=flag_names(model.knows),
            controls=list(model.controls),
        )

    def threat_model(self) -> ThreatModel:
        """The threat model of this record."""
        return ThreatModel(
            self.who,
            self.activity,
            parse_observations(self.sees),
            parse_knowledge(self.knows),
            tuple(self.controls),
        )


class Problem(Record):
    """Something that went wrong and did not stop the run."""

    where: Text
    round: int | None = None
    message: Text


class Utility(Record):
    """How well the global model works after a round, on records nobody trained on."""

    round: int
    loss: Estimate | None = Field(description="Mean cross-entropy, nats; None if not finite")
    accuracy: Estimate


class RunManifest(Record):
    """run.json: what was run, by what, and how far it came."""

    schema_version: Literal[1] = 1
    title: Text
    created: Text = Field(description="UTC, ISO 8601")
    state: Literal["running", "done", "interrupted", "failed"] = "running"
    seed: int
    engine: Text
    versions: dict[Text, Text]
    threat_model: ThreatModelRecord
    strategy: dict[str, JsonValue]
    defence: dict[str, JsonValue] = Field(description="As configured; not a verdict")
    adversary: dict[str, JsonValue] = Field(
        default_factory=dict, description="What an active adversary does; empty if there is none"
    )
    model: ModelSpec | None = None
    local_training: LocalTrainings | None = None
    recording: RecordingPolicy = RecordingPolicy()
    planned_rounds: int | None = None
    num_clients: int | None = None
    data: dict[str, JsonValue] = Field(default_factory=dict)
    utility: list[Utility] = Field(default_factory=list)
    problems: list[Problem] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict, description="Stage: wall seconds")
    trace_digest: str | None = Field(
        default=None, description="sha256 of trace/digests.json when the rounds ended"
    )


class RunDirectory:
    """Paths of a run directory, and its manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._unwritten: RunManifest | None = None
        self.manifest_file = path / "run.json"
        self.scenario_file = path / "scenario.toml"
        self.trace = path / "trace"
        self.game = path / "game"
        self.truth = path / "game" / "truth"
        self.results = path / "results"
        self.model_file = path / "model.json"
        self.detection_file = path / "detection.json"

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> RunDirectory:
        """Create an empty run directory.

        Args:
            path: Where; its parents are created.
            overwrite: Delete a run directory that stands there. Anything else is refused.

        Raises:
            RunDirectoryError: If the place is taken, or inside a Flower app.
        """
        try:
            path = Path(path).resolve()  # a link into a Flower app lies inside it
            if _is_taken(path, overwrite=overwrite):
                _clear(path)
            private_directory(path)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise _cannot_create(path, error) from error
        return cls(path)

    @staticmethod
    def check(path: Path, *, overwrite: bool = False) -> None:
        """Refuse what `create` (or without overwriting, `resume`) would; nothing is touched.

        Raises:
            RunDirectoryError: If the place is taken, or inside a Flower app.
        """
        try:
            path = Path(path).resolve()
            if overwrite or not (path / "run.json").is_file():
                _is_taken(path, overwrite=overwrite, spared=() if overwrite else ("run.json.part",))
        except (OSError, RuntimeError) as error:
            raise _cannot_create(path, error) from error

    @classmethod
    def resume(cls, path: Path) -> RunDirectory:
        """Open an interrupted run to write the rest of it, or create it if it never began.

        Raises:
            RunDirectoryError: If something else stands there.
        """
        if not (Path(path) / "run.json").is_file():
            (Path(path) / "run.json.part").unlink(missing_ok=True)  # killed at the first breath
            return cls.create(path)
        return cls.open(path)

    def lock(self) -> None:
        """Keep other processes from writing here, until `release` or the end of this process.

        Raises:
            RunDirectoryError: If another process, or another run of this one, writes here.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise RunDirectoryError(
                "out",
                str(self.path),
                "another run is writing to this directory",
                "Wait for it to end, or choose another directory.",
            ) from error
        self.release()
        self._lock = descriptor

    def release(self) -> None:
        """Let others write here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        self.release()

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            RunDirectoryError: If there is none, or if something in it is a link: what somebody
                else made must not have us read, or write, elsewhere.
        """
        run = cls(Path(path).absolute())
        try:
            if not run.manifest_file.is_file():
                raise _no_run(path, "it holds no run.json")
            special = find_special_file(run.path)
        except OSError as error:
            raise _no_run(path, f"cannot be read ({error.strerror})") from error
        if special is not None:
            raise RunDirectoryError(
                "run directory",
                str(special),
                "it holds plain files and folders only, and this is a link or a device",
                "If you made it and trust it, put the file itself in its place.",
            )
        return run

    def read_manifest(self) -> RunManifest:
        """Read run.json, or what could not be written to it.

        Raises:
            RunDirectoryError: If it is damaged or of a newer schema.
        """
        if self._unwritten is not None:
            return self._unwritten
        try:
            content = read_json(self.manifest_file)
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
        """Write run.json. What a full disk refuses is kept, for whoever reads and writes next."""
        self._unwritten = manifest
        write_text(self.manifest_file, manifest.model_dump_json(indent=1))
        self._unwritten = None

    def open_trace(self) -> Trace:
        """Open the recorded trace."""
        return Trace.open(self.trace)

    def result_file(self, name: str) -> Path:
        """A path in results/, whose folder is created."""
        return private_directory(self.results) / name


def refuse_flower_app(path: Path) -> None:
    """Refuse a place (links resolved) in a Flower app: its files are shipped to every node.

    Raises:
        RunDirectoryError: If it lies there.
    """
    for folder in [path, *path.parents]:
        project = folder / "pyproject.toml"
        if not project.is_file():
            continue
        try:
            tables = tomllib.loads(project.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # unreadable for us, so for Flower
            continue
        if _is_table(tables, "tool", "flwr", "app"):
            raise RunDirectoryError(
                "out",
                str(path),
                f"it lies inside the Flower app {folder}, whose files are shipped to every node",
                "Choose a directory outside the app: a trace holds personal data.",
            )


def refuse_run_directory(path: Path) -> None:
    """Refuse a place (links resolved) in a run directory, which holds fl-audit's own files only.

    Raises:
        RunDirectoryError: If it lies there.
    """
    for folder in [path, *path.parents]:
        if _is_run(folder):
            place = "is" if folder == path else "lies inside"
            raise RunDirectoryError(
                "out",
                str(path),
                f"it {place} the run directory {folder}, which --overwrite would then refuse",
                "Choose a folder outside the run directory.",
            )


_OURS = (
    "scenario.toml",
    "audit.toml",
    "model.json",
    "detection.json",
    "trace",
    "shadows",
    "game",
    "results",
    "report.json",
    "report.html",
    "run.json",
)
"""What a run directory holds, in the order of deletion: it stays a run until the last."""


def _no_run(path: Path, why: str) -> RunDirectoryError:
    return RunDirectoryError(
        "run directory",
        str(path),
        why,
        "Give a directory that `fl-audit run --out` or CuriousStrategy wrote.",
    )


def _cannot_create(path: Path, error: Exception) -> RunDirectoryError:
    return RunDirectoryError(
        "out",
        str(path),
        f"cannot be created ({getattr(error, 'strerror', None) or error})",
        "Choose a place that you may write to.",
    )


def _is_taken(path: Path, *, overwrite: bool, spared: tuple[str, ...] = ()) -> bool:
    """Whether something stands there but `spared` files; raises if it must not be deleted."""
    refuse_flower_app(path)
    if not path.exists() or (path.is_dir() and all(p.name in spared for p in path.iterdir())):
        return False
    _check_clearing(path, overwrite=overwrite)
    return True


def _check_clearing(path: Path, *, overwrite: bool) -> None:
    is_run = _is_run(path)
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
            "--overwrite deletes run directories only, and this holds no run.json of fl-audit's",
            "Choose another directory, or empty this one yourself.",
        )
    standing = RunDirectory(path)
    standing.lock()  # raises for a run that is still going on
    standing.release()
    strangers = sorted(p.name for p in path.iterdir() if p.name.removesuffix(".part") not in _OURS)
    if strangers:
        raise RunDirectoryError(
            "out",
            str(path),
            f"fl-audit did not write {strangers[0]!r} in it, so --overwrite deletes nothing",
            "Move away what is yours, or choose another directory.",
        )


def _clear(path: Path) -> None:
    for name in [f"{name}.part" for name in _OURS] + list(_OURS):
        _delete(path / name)


def _is_run(path: Path) -> bool:
    """Whether run.json is a manifest of ours, of any version: other tools use that name, too."""
    try:
        content = read_json(path / "run.json")
    except (OSError, ValueError):
        return False
    ours = {"schema_version", "engine", "threat_model"}
    return isinstance(content, dict) and ours <= content.keys()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_table(tables: object, *keys: str) -> bool:
    for key in keys:
        tables = tables.get(key) if isinstance(tables, dict) else None
    return isinstance(tables, dict)

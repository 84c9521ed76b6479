"""The report: one JSON document with everything that a renderer needs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from fl_audit.errors import InputError, RunDirectoryError, clean_text
from fl_audit.files import private_directory, read_json, write_text
from fl_audit.game import GameRules
from fl_audit.results import AnyAttackRecord, Record
from fl_audit.run_directory import RunManifest

SCHEMA_VERSION = 1


class RoundSummary(Record):
    """What happened in one round."""

    round: int
    state: Literal["sent", "replied", "aggregated"]
    sampled: int
    replied: int = Field(description="Clients whose reply carries finite arrays")
    kept: int = Field(description="Clients whose arrays the recording policy kept")
    failed: int = Field(description="Clients that replied with an error, or with nothing usable")


class TraceSummary(Record):
    """What was recorded."""

    digest: str = Field(description="sha256 over arrays, counts, errors and (round, client) keys")
    rounds: list[RoundSummary]
    megabytes: float = Field(ge=0)


class GameSummary(Record):
    """How membership was decided."""

    rules: GameRules
    num_candidates: int
    num_null: int
    num_auxiliary: int


class ReconstructionImage(Record):
    """One reconstructed record, as 8-bit grey or RGB PNG in base64, [0, 1] scaled to [0, 255]."""

    round: int
    client: int
    reconstruction_png: str
    original_png: str | None = Field(description="None where the truth is not known")
    baseline_png: str | None = Field(description="What the attacker would guess unseen")


class NotTested(Record):
    """An attack that fl-audit has and this audit did not run."""

    attack: str
    summary: str
    needs: str


class AuditReport(Record):
    """Everything an audit did and found."""

    schema_version: Literal[1] = 1
    run: RunManifest
    trace: TraceSummary | None
    game: GameSummary | None
    attacks: list[AnyAttackRecord]
    images: dict[str, list[ReconstructionImage]] = Field(
        default_factory=dict, description="Attack label: pictures, where inputs are pictures"
    )
    not_tested: list[NotTested]

    def save(self, folder: str | Path) -> Path:
        """Write report.json and report.html into `folder`; return the path of the latter."""
        from fl_audit.report.html import render_html  # matplotlib is slow to import

        target = private_directory(Path(folder))
        write_text(target / "report.json", self.model_dump_json(indent=1))
        page = target / "report.html"
        write_text(page, render_html(self))
        return page


def load_report(path: str | Path) -> AuditReport:
    """Read a report.json.

    Raises:
        RunDirectoryError: If it is missing, damaged, or of a newer schema.
    """
    try:
        content = read_json(Path(path))
        version = content.get("schema_version", 0) if isinstance(content, dict) else 0
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InputError(
                "report.json schema_version",
                version,
                f"this fl-audit reads up to version {SCHEMA_VERSION}",
                "Upgrade fl-audit to read this report.",
            )
        return AuditReport.model_validate(content)
    except (OSError, ValueError, ValidationError) as error:
        if isinstance(error, InputError):
            raise
        raise RunDirectoryError(
            "report.json",
            clean_text(error, 200),
            "the file is missing or damaged",
            "Write it again with `fl-audit report`.",
        ) from error

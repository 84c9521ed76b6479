"""The report: one JSON document with everything that a renderer needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, ValidationError

from fl_audit.detection import Detection
from fl_audit.errors import InputError, RunDirectoryError, clean_text
from fl_audit.files import private_directory, read_json, write_bytes, write_text
from fl_audit.game import GameRules
from fl_audit.results import AnyAttackRecord, Estimate, Histogram, Record, Text
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
    honest_set: int | None = Field(
        default=None, description="Clients in the sum that the adversary does not control"
    )


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
    client: int = Field(description="-1 for a sum of updates")
    reconstruction_png: str | None = Field(
        description="None where no reconstruction was paired with the original"
    )
    original_png: str | None = Field(description="None where the truth is not known")
    baseline_png: str | None = Field(description="What the attacker would guess unseen")
    psnr_db: float | None = None
    ssim: float | None = None
    label: int | None = Field(default=None, description="As the attack says")
    true_label: int | None = None
    frames_png: list[str] = Field(default_factory=list, description="Reconstructions on the way")


class ReconstructedValues(Record):
    """One reconstructed record that is no picture: token numbers, or a row of a table."""

    round: int
    client: int = Field(description="-1 for a sum of updates")
    found: list[float] | None = Field(
        description="None where no reconstruction was paired with the original"
    )
    original: list[float] | None = Field(description="None where the truth is not known")
    guess: list[float] | None
    right: list[bool] = Field(description="Which values are right; empty if not known")
    num_values: int = Field(description="Of the record; those shown may be fewer")


class ObjectiveTrace(Record):
    """The attacker's objective over the iterations behind one claim, thinned for drawing."""

    round: int
    client: int = Field(description="-1 for a sum of updates")
    steps: list[int]
    values: list[float]


class NotTested(Record):
    """An attack that fl-audit has and this audit did not run."""

    attack: str
    summary: str
    needs: str


class UtilitySlice(Record):
    """How well the audited model works on what it was trained on, and on what it was not."""

    label: int | None = Field(description="Class; None for all records")
    train_accuracy: Estimate | None = Field(description="None for regression")
    test_accuracy: Estimate | None
    accuracy_gap: Estimate | None = Field(description="train minus test")
    train_loss: Estimate | None = Field(description="Mean, nats; None with fewer than two records")
    test_loss: Estimate | None


class Agreement(Record):
    """Which members two attacks call members at the decision's false-positive rate."""

    first: Text
    second: Text
    both: int = Field(ge=0)
    only_first: int = Field(ge=0)
    only_second: int = Field(ge=0)
    neither: int = Field(ge=0)


class AccessGain(Record):
    """What more access gains: AUC of one attack minus that of another on the same records.

    At each level stands the attack that did best where a shadow model played the target, so that
    the truth about the target does not choose.
    """

    less: Text = Field(description='"labels", "confidences" or "white box"')
    more: Text
    less_attack: Text
    more_attack: Text
    gain: Estimate


class ModelSummary(Record):
    """What was audited, and how members and models to compare with came about."""

    target: Text
    task: Literal["classification", "regression"]
    game: Text = Field(description="Whose privacy loss is measured")
    notes: list[Text] = Field(default_factory=list)
    num_members: int = Field(ge=0)
    num_non_members: int = Field(ge=0)
    num_null: int = Field(ge=0)
    num_auxiliary: int = Field(ge=0)
    auxiliary_from: Text
    trainer: Text | None = Field(description="How shadow models were trained; None: none were")
    shadow_models: dict[Text, int] = Field(description="Mode: how many were trained")
    utility: list[UtilitySlice] = Field(default_factory=list)
    gradient_norms: Histogram | None = Field(
        default=None, description="log10 of the norm of each record's loss gradient"
    )
    agreement: list[Agreement] = Field(default_factory=list)
    agreement_fpr: float | None = None
    gains: list[AccessGain] = Field(default_factory=list)


class AuditReport(Record):
    """Everything an audit did and found."""

    _files: dict[str, bytes] = PrivateAttr(default_factory=dict)

    schema_version: Literal[1] = 1
    run: RunManifest
    trace: TraceSummary | None
    game: GameSummary | None
    attacks: list[AnyAttackRecord]
    images: dict[str, list[ReconstructionImage]] = Field(
        default_factory=dict, description="Attack label: pictures, where inputs are pictures"
    )
    values: dict[str, list[ReconstructedValues]] = Field(
        default_factory=dict, description="Attack label: records, where they are no pictures"
    )
    objectives: dict[str, list[ObjectiveTrace]] = Field(
        default_factory=dict, description="Attack label: traces of its search, where it searches"
    )
    not_tested: list[NotTested]
    model: ModelSummary | None = Field(default=None, description="For audits of a trained model")
    detection: Detection | None = Field(
        default=None, description="Whether clients could have noticed an active adversary"
    )

    def attach(self, files: Mapping[str, bytes]) -> None:
        """Keep tables of scores, to be written to results/ when the report is saved."""
        self._files.update(files)

    def save(self, folder: str | Path) -> Path:
        """Write report.json, report.html and tables of scores (results/) into `folder`.

        Returns:
            The path of report.html.
        """
        from fl_audit.report.html import render_html  # matplotlib is slow to import

        target = private_directory(Path(folder))
        for name, content in self._files.items():
            write_bytes(private_directory(target / "results") / name, content)
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

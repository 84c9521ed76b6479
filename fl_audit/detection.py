"""detection.json: whether a client could have noticed the adversary, for the report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from fl_audit.errors import RunDirectoryError, clean_text
from fl_audit.files import read_json, write_text
from fl_audit.results import Record, Text
from fl_audit.run_directory import RunDirectory

CheckName = Literal["models-differ", "identical-rows", "row-out-of-scale", "loss-jump"]

CHECKS: dict[CheckName, str] = {
    "models-differ": "Clients of one round received different models. Clients notice only if they "
    "compare digests over a channel that the server does not control.",
    "identical-rows": "Rows of a dense layer are copies of one another with different biases, as "
    "an imprint of the inputs needs them.",
    "row-out-of-scale": "A row of a dense layer, or its bias, is far outside the layer's scale, as "
    "a trap for one record needs it.",
    "loss-jump": "The received model is suddenly worse on the client's own records than those of "
    "the rounds before.",
}
"""What each check sees, for a person."""


class DetectionFinding(Record):
    """Something that one client could have seen in one round."""

    check: CheckName
    round: int = Field(ge=1)
    client: int
    what: Text = Field(description="Where, how much, against what limit")
    value: float = Field(
        description="models-differ: number of models; identical-rows: rows; row-out-of-scale: "
        "multiples of the usual size; loss-jump: nats above the last rounds"
    )


class Detection(Record):
    """detection.json: all that honest clients could have noticed."""

    schema_version: Literal[1] = 1
    adversary: Text = Field(description="Name of the behaviour, as in [adversary]")
    acts_through: list[int] = Field(description="Malicious clients; empty if the server acts")
    watched: list[int] = Field(description="Honest clients whose view was examined")
    rounds: list[int] = Field(description="Rounds whose models were there to examine")
    findings: list[DetectionFinding]
    not_examined: dict[int, list[int]] = Field(
        default_factory=dict,
        description="Round: honest clients that were sent a model which was not kept",
    )
    notes: list[Text] = Field(default_factory=list)

    @property
    def noticed(self) -> bool:
        """Whether any honest client could have noticed anything."""
        return bool(self.findings)

    @property
    def alone(self) -> bool:
        """Whether one could have without a channel to other clients."""
        return any(finding.check != "models-differ" for finding in self.findings)

    def counts(self) -> dict[CheckName, int]:
        """Findings of each check, all checks included."""
        return {name: sum(f.check == name for f in self.findings) for name in CHECKS}


def write_detection(run: RunDirectory, detection: Detection) -> None:
    """Write detection.json."""
    write_text(run.detection_file, detection.model_dump_json(indent=1))


def read_detection(run: RunDirectory) -> Detection | None:
    """detection.json; None if the run has none (no active adversary).

    Raises:
        RunDirectoryError: If it is damaged.
    """
    if not run.detection_file.is_file():
        return None
    try:
        return Detection.model_validate(read_json(run.detection_file))
    except (OSError, ValueError, ValidationError) as error:
        raise RunDirectoryError(
            "detection.json",
            clean_text(error, 200),
            "the file is damaged or of another version",
            "Run the scenario again.",
        ) from error

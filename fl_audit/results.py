"""What an audit says: estimates with intervals, and one record per attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from fl_audit.errors import clean_text
from fl_audit.records import Records


def _clean(value: object) -> object:
    return clean_text(value, 2000) if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_clean)]
"""Words for a person, safe for a terminal or a page whoever wrote the file they stand in."""


class Record(BaseModel):
    """Base of everything that is written to a file: frozen, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Record):
    """A number with its interval. A point estimate alone is not a result."""

    value: float
    low: float
    high: float
    confidence: float = Field(gt=0, lt=1, description="Coverage of [low, high], e.g. 0.95")
    n: int = Field(gt=0, description="Independent trials behind the estimate")

    @model_validator(mode="after")
    def _ordered(self) -> Estimate:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"estimate {self.value} lies outside [{self.low}, {self.high}]")
        return self

    def __str__(self) -> str:
        digits = 3 if abs(self.value) < 10 else 1
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


class Curve(Record):
    """Points of a ROC curve, thinned for drawing; numbers are never computed from it."""

    fpr: list[float]
    tpr: list[float]


class MembershipMetrics(Record):
    """How well a score tells members from non-members."""

    num_members: int = Field(gt=0)
    num_non_members: int = Field(gt=0)
    metrics: dict[Text, Estimate] = Field(description='"auc", "tpr@fpr=0.01", ...')
    refused: dict[Text, Text] = Field(
        default_factory=dict, description="Metrics that this many records cannot resolve, and why"
    )
    roc: Curve


class AttackRecord(Record):
    """What stands in every attack's result, whatever its kind."""

    schema_version: Literal[1] = 1
    label: Text = Field(description="Unique in a report; the attack's name unless given")
    attack: Text = Field(description="Name in the registry")
    seed: int
    settings: dict[str, JsonValue]
    requires: list[Text] = Field(description="Observations the attack used")
    knows: list[Text] = Field(description="Knowledge the attack used")
    reference: Text
    summary: Text
    rounds: list[int] = Field(description="Rounds of the trace the attack could see")
    activity: Literal["honest-but-curious", "malicious"] = Field(
        default="honest-but-curious",
        description='"malicious": its adversary must have changed something in the federation',
    )
    who: Literal["server", "client", "coalition", "observer"] | None = Field(
        default=None, description="The only adversary that can do it; None: whoever sees enough"
    )
    notes: list[Text] = Field(default_factory=list)


class Decisions(Record):
    """How scores became probabilities and decisions, without the truth about the target."""

    calibrated_on: Text = Field(description="Where the threshold and probabilities come from")
    prior: float = Field(gt=0, lt=1, description="Assumed share of members")
    fpr: float = Field(gt=0, lt=1, description="At most, at `threshold`, on known non-members")
    threshold: float = Field(description="Member if score > threshold")
    calibration_auc: Estimate = Field(description="AUC of the attack where it was calibrated")
    num_called: int = Field(ge=0, description="Candidates called members, figures' ones only")
    found_fpr: Estimate | None = Field(
        default=None, description="Share of the non-members called members: how well `fpr` held"
    )
    found_tpr: Estimate | None = Field(
        default=None, description="Share of the members called members"
    )


class ClassSlice(Record):
    """An attack's figures on the records of one class."""

    label: int
    num_members: int = Field(ge=0)
    num_non_members: int = Field(ge=0)
    auc: Estimate | None = Field(description="None with fewer than two records on a side")


class ExposedRecord(Record):
    """A member that the attack is most sure about."""

    id: int
    label: int
    score: float
    probability: float | None
    is_member: bool


class Histogram(Record):
    """Shares of records by score, members and non-members, in the same bins."""

    edges: list[float]
    members: list[float]
    non_members: list[float]


class RiskDetails(Record):
    """Who is at risk: by record and by class."""

    access: Literal["labels", "confidences", "white box", "updates"]
    most_exposed: list[ExposedRecord]
    per_class: list[ClassSlice]
    histogram: Histogram
    histogram_per_class: dict[int, Histogram] = Field(default_factory=dict)


class RoundLeakage(Record):
    """What one round alone gives away, on the candidates that count in that round."""

    round: int = Field(ge=1)
    auc: Estimate


class KindSlice(Record):
    """An attack's figures on the canaries of one kind, beside its null control of that kind."""

    result: MembershipMetrics
    null: MembershipMetrics | None


class MembershipRecord(AttackRecord):
    """Membership inference, beside its null control."""

    kind: Literal["membership"] = "membership"
    result: MembershipMetrics | None = Field(description="None where no truth is known")
    null: MembershipMetrics | None = Field(
        description="The same attack on candidates of which none was trained on; chance = sound"
    )
    null_holds: bool | None = Field(
        description="Whether chance lies in the null's 99.9 % AUC interval: at 95 % one sound "
        "attack in twenty would look off"
    )
    decisions: Decisions | None = Field(
        default=None, description="None where nothing could be calibrated; the notes say why"
    )
    details: RiskDetails | None = None
    unit: Literal["record", "user"] = Field(
        default="record", description="What was scored: single records, or persons"
    )
    timeline: list[RoundLeakage] = Field(
        default_factory=list, description="For attacks on single rounds, as in `result`"
    )
    slices: dict[Text, KindSlice] = Field(
        default_factory=dict,
        description="Kind of canary: figures on it. `result` is of natural records only",
    )
    scores_file: str = Field(
        pattern=r"^[^/\\]+\.parquet$",  # a name, so that it cannot point out of results/
        description="Parquet with id, label, is_member, score, probability, decision, in results/",
    )


LOWER_IS_BETTER = frozenset({"feature_distance", "median_rank"})
"""Metrics of reconstructions of which a smaller value means a better reconstruction."""


PER_CLAIM = frozenset({"psnr_db", "ssim", "median_rank", "feature_distance", "token_precision"})
"""Metrics of reconstructions that are about what was claimed, not about all originals."""


class ColumnFigure(Record):
    """How often one column of a table came back right."""

    column: int = Field(ge=0)
    found: Estimate = Field(description="Share of the records, one update = one trial")
    baseline: Estimate | None = Field(description="The same for the guess")


class ReconstructionRecord(AttackRecord):
    """Reconstruction of training data, beside a prior-only baseline.

    Higher metrics are better, but for those in `LOWER_IS_BETTER`.
    """

    kind: Literal["reconstruction"] = "reconstruction"
    of: Literal["records", "class"] = Field(
        default="records",
        description='"class": what a class looks like. "original" in its arrays is then the mean '
        "of held-out records of that class: nobody trained on it",
    )
    num_targets: int = Field(description="Client updates the attack made a claim about")
    num_tried: int | None = Field(
        default=None,
        description="Client updates it tried; those without a claim count as 0 in shares. None: "
        "not recorded",
    )
    metrics: dict[Text, Estimate]
    baseline: dict[Text, Estimate] = Field(
        description="The same metrics for a guess made without the update (mean record, class mix)"
    )
    gain: dict[Text, Estimate] = Field(
        default_factory=dict,
        description="Mean over updates of metric minus the guess's on the same update (of ranks: "
        "median), with the sign that makes positive better",
    )
    leading: Text | None = Field(
        default=None,
        description="The metric whose gain decides the verdict: fixed by what was claimed",
    )
    refused: dict[Text, Text] = Field(default_factory=dict)
    expected: dict[Text, float] = Field(
        default_factory=dict,
        description="Metric: its value from theory, computed before the truth was looked at",
    )
    contents: Literal["numbers", "tokens", "table"] = Field(
        default="numbers", description="What records are: numbers (pictures among them), or else"
    )
    columns: list[ColumnFigure] = Field(default_factory=list, description="For tables")
    arrays_file: str | None = Field(
        pattern=r"^[^/\\]+\.safetensors$", description="safetensors with all arrays, in results/"
    )

    def beats_guess(self, metric: str) -> bool:
        """Whether the interval of what a metric gains on the guess lies above zero."""
        gain = self.gain.get(metric)
        return gain is not None and gain.low > 0


class RoundEstimate(Record):
    """A figure from what one round alone shows."""

    round: int
    estimate: Estimate


class EstimateRecord(AttackRecord):
    """What an attack inferred about clients or records, beside what is known without it.

    The verdict rests on the metrics named in `chance`: all of them must lie above it.
    """

    kind: Literal["estimate"] = "estimate"
    claim: Text = Field(description='What is leaked if the attack works: "which client holds ..."')
    trial: Text = Field(description="What one of the n trials behind the figures is")
    metrics: dict[Text, Estimate]
    chance: dict[Text, float] = Field(
        description="What a metric is, exactly, where nothing leaks; these decide the verdict"
    )
    baseline: dict[Text, Estimate] = Field(
        default_factory=dict, description="The same metrics for a guess that saw no update"
    )
    null: dict[Text, Estimate] = Field(
        default_factory=dict, description="The same metrics where there is nothing to find"
    )
    refused: dict[Text, Text] = Field(default_factory=dict)
    timeline_metric: Text | None = None
    timeline: list[RoundEstimate] = Field(
        default_factory=list, description="`timeline_metric` by round; rounds are not independent"
    )
    table_file: str = Field(
        pattern=r"^[^/\\]+\.parquet$",
        description="Parquet with everything behind the figures, in results/",
    )


class UnavailableRecord(AttackRecord):
    """An attack that was asked for and could not give a number: refused, or failed."""

    kind: Literal["unavailable"] = "unavailable"
    reason: Text


AnyAttackRecord = Annotated[
    MembershipRecord | ReconstructionRecord | EstimateRecord | UnavailableRecord,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, slots=True, eq=False)
class MembershipResult:
    """A membership record with the scores it was computed from.

    Attributes:
        candidates: The records that were scored.
        scores: Higher = more likely a member, shape (n,).
        is_member: The truth, shape (n,), or None where it is not known.
        is_scored: Candidates that the figures are computed from, shape (n,), or None likewise.
        null_scores: Scores of the null candidates, or None without a null control.
        probabilities: P(member), shape (n,), or None where nothing was calibrated.
        called: True where the record is called a member, shape (n,), or None likewise.
        accuracy: In games over many models, the share of them in which the decision on the record
            is right, shape (n,).
        kinds: Place in `fl_audit.game.KINDS` of each candidate, shape (n,), or None: all natural.
    """

    record: MembershipRecord
    candidates: Records
    scores: NDArray[np.float64]
    is_member: NDArray[np.bool_] | None
    is_scored: NDArray[np.bool_] | None
    null_scores: NDArray[np.float64] | None
    probabilities: NDArray[np.float64] | None = None
    called: NDArray[np.bool_] | None = None
    accuracy: NDArray[np.float64] | None = None
    kinds: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ReconstructionResult:
    """A reconstruction record with its arrays, by name, as they are written to a file."""

    record: ReconstructionRecord
    arrays: dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class EstimateResult:
    """An estimate record with the table behind it: columns of equal length by name."""

    record: EstimateRecord
    table: dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class UnavailableResult:
    """An attack that gave no number."""

    record: UnavailableRecord


AttackResult = MembershipResult | ReconstructionResult | EstimateResult | UnavailableResult

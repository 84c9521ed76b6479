"""Who is at risk: probabilities, decisions, the most exposed records, and slices by class."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.decisions import DECISION_FPR, LEAST_REFERENCE, PRIOR, Calibration
from fl_audit.results import (
    ClassSlice,
    Decisions,
    Estimate,
    ExposedRecord,
    Histogram,
    MembershipResult,
    RiskDetails,
)
from fl_audit.stats import auc_ci, balanced_accuracy_ci, proportion
from fl_audit.threat_model import Observation

Access = Literal["labels", "confidences", "white box", "updates"]
_MOST_EXPOSED = 20
_MOST_CLASSES = 100  # slices of more classes than this say nothing a person could read
_HISTOGRAM_CLASSES = 20
_BINS = 20
_LEAST_A_SIDE = 2


def access_of(requires: Observation) -> Access:
    """What an attack's adversary has of the model."""
    if requires & (Observation.CLIENT_UPDATES | Observation.AGGREGATE | Observation.GLOBAL_MODEL):
        return "updates"
    if Observation.FINAL_MODEL in requires:
        return "white box"
    return "confidences" if Observation.LOGITS in requires else "labels"


def with_risk(
    result: MembershipResult, calibration: Calibration | None, access: Access
) -> MembershipResult:
    """The result with probabilities, decisions and details, as far as they can be known."""
    record = result.record
    probabilities = called = decisions = None
    null = result.null_scores
    if calibration is not None and (null is None or len(null) < LEAST_REFERENCE):
        # scores of some attacks move with small differences between models: the target's own
        # scale is known from records that nobody trained on, and from nothing else
        have = 0 if null is None else len(null)
        note = f"No probabilities and decisions: {have} null candidates, {LEAST_REFERENCE} needed."
        record = record.model_copy(update={"notes": [*record.notes, note]})
        calibration = None
    if calibration is not None:
        calibration = replace(calibration, reference=null)
        probabilities = calibration.probabilities(result.scores)
        threshold = calibration.threshold()
        called = result.scores > threshold
        counted = called if result.is_scored is None else called[result.is_scored]
        decisions = Decisions(
            calibrated_on="a shadow model in the target's place, whose members are known; null "
            "candidates set the scale and the threshold",
            prior=PRIOR,
            fpr=DECISION_FPR,
            threshold=threshold,
            calibration_auc=auc_ci(calibration.is_member, calibration.scores),
            num_called=int(counted.sum()),
            found_fpr=_share_called(result, called, member=False),
            found_tpr=_share_called(result, called, member=True),
        )
    details, metrics = None, record.result
    if result.is_member is not None and result.is_scored is not None:
        details = _details(result, probabilities, access)
        if metrics is not None and calibration is not None:
            scored = result.is_scored
            balanced = balanced_accuracy_ci(
                result.is_member[scored], calibration.called_balanced(result.scores[scored])
            )
            metrics = metrics.model_copy(
                update={"metrics": {**metrics.metrics, "balanced_accuracy": balanced}}
            )
    record = record.model_copy(
        update={"decisions": decisions, "details": details, "result": metrics}
    )
    return replace(result, record=record, probabilities=probabilities, called=called)


def _share_called(
    result: MembershipResult, called: NDArray[np.bool_], *, member: bool
) -> Estimate | None:
    if result.is_member is None or result.is_scored is None:
        return None
    side = called[result.is_scored & (result.is_member == member)]
    return proportion(int(side.sum()), len(side)) if len(side) else None


def _details(
    result: MembershipResult, probabilities: NDArray[np.float64] | None, access: Access
) -> RiskDetails:
    assert result.is_member is not None
    assert result.is_scored is not None
    rows = np.flatnonzero(result.is_scored)
    labels, member = result.candidates.labels[rows], result.is_member[rows]
    scores = result.scores[rows]
    # by probability where there is one: a histogram of scores with outliers shows one bar
    shown = scores if probabilities is None else probabilities[rows]
    edges = _edges(shown, is_probability=probabilities is not None)
    classes = np.unique(labels)[:_MOST_CLASSES]
    of_class = {int(c): labels == c for c in classes[:_HISTOGRAM_CLASSES]}
    return RiskDetails(
        access=access,
        most_exposed=_most_exposed(result, probabilities, rows),
        per_class=[_slice(int(c), member[labels == c], scores[labels == c]) for c in classes],
        histogram=_histogram(shown, member, edges),
        histogram_per_class={
            c: _histogram(shown[own], member[own], edges) for c, own in of_class.items()
        },
    )


def _most_exposed(
    result: MembershipResult, probabilities: NDArray[np.float64] | None, rows: NDArray[np.int64]
) -> list[ExposedRecord]:
    """Members by falling score; ties by id."""
    assert result.is_member is not None
    members = rows[result.is_member[rows]]
    order = np.lexsort((result.candidates.ids[members], -result.scores[members]))
    return [
        ExposedRecord(
            id=int(result.candidates.ids[row]),
            label=int(result.candidates.labels[row]),
            score=float(result.scores[row]),
            probability=None if probabilities is None else float(probabilities[row]),
            is_member=True,
        )
        for row in members[order][:_MOST_EXPOSED]
    ]


def _slice(label: int, member: NDArray[np.bool_], scores: NDArray[np.float64]) -> ClassSlice:
    sides = int(member.sum()), int((~member).sum())
    return ClassSlice(
        label=label,
        num_members=sides[0],
        num_non_members=sides[1],
        auc=auc_ci(member, scores) if min(sides) >= _LEAST_A_SIDE else None,
    )


def _edges(shown: NDArray[np.float64], *, is_probability: bool) -> NDArray[np.float64]:
    if is_probability:
        return np.linspace(0, 1, _BINS + 1)
    low, high = np.quantile(shown, [0.01, 0.99])
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _BINS + 1)


def _histogram(
    shown: NDArray[np.float64], member: NDArray[np.bool_], edges: NDArray[np.float64]
) -> Histogram:
    """Shares; what lies beyond the edges counts in the outermost bins."""
    inside = np.clip(shown, edges[0], edges[-1])
    sides = [np.histogram(inside[side], bins=edges)[0] for side in (member, ~member)]
    shares = [(side / max(1, side.sum())).tolist() for side in sides]
    return Histogram(edges=edges.tolist(), members=shares[0], non_members=shares[1])

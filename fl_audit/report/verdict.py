"""One sentence per result. An attack that fails never means that something is private."""

from __future__ import annotations

from fl_audit.results import (
    AnyAttackRecord,
    Estimate,
    MembershipMetrics,
    MembershipRecord,
    ReconstructionRecord,
)

CHANCE = 0.5  # AUC of a score that knows nothing
NOTHING_FOUND = "no leakage detected by this attack at this power"


def verdict(record: AnyAttackRecord) -> str:
    """What a result says, in plain words; limits of intervals decide, never point estimates."""
    if isinstance(record, MembershipRecord):
        return _membership(record)
    if isinstance(record, ReconstructionRecord):
        return _reconstruction(record)
    return f"not available: {record.reason}"


def null_is_off(null: MembershipMetrics | None) -> bool:
    """Whether the attack finds members where there are none."""
    return null is not None and not _holds_chance(null.metrics["auc"])


def _membership(record: MembershipRecord) -> str:
    if record.result is None:
        return "scores only: no truth to compare with"
    auc = record.result.metrics["auc"]
    if auc.low > CHANCE:
        sentence = "leaks membership"
    elif auc.high < CHANCE:
        sentence = "below chance: check the sign or the setup"
    else:
        sentence = NOTHING_FOUND
    if null_is_off(record.null):
        sentence += "; null control is off: do not trust this number"
    return sentence


def _reconstruction(record: ReconstructionRecord) -> str:
    if record.num_targets == 0:
        return "made no claim"
    if not record.metrics:
        return "claims only: no truth to compare with"
    better = [
        name
        for name, estimate in record.metrics.items()
        if name in record.baseline and estimate.low > record.baseline[name].high
    ]
    if better:
        return "training data reconstructed better than a guess"
    return "no better than a guess at this power"


def _holds_chance(estimate: Estimate) -> bool:
    return estimate.low <= CHANCE <= estimate.high

"""One sentence per result. An attack that fails never means that something is private."""

from __future__ import annotations

from fl_audit.results import (
    AnyAttackRecord,
    EstimateRecord,
    MembershipMetrics,
    MembershipRecord,
    ReconstructionRecord,
)

CHANCE = 0.5  # AUC of a score that knows nothing
_BETTER = {  # by the measure that decides: labels or tokens alone are no reconstruction
    "label_overlap": "leaks training labels: better than a guess",
    "token_recall": "leaks tokens of the training data: better than a guess",
}
NOTHING_FOUND = "no leakage detected by this attack at this power"


def verdict(record: AnyAttackRecord) -> str:
    """What a result says, in plain words; limits of intervals decide, never point estimates."""
    if isinstance(record, MembershipRecord):
        return _membership(record)
    if isinstance(record, ReconstructionRecord):
        return _reconstruction(record)
    if isinstance(record, EstimateRecord):
        return _estimate(record)
    return f"not available: {record.reason}"


def _membership(record: MembershipRecord) -> str:
    if record.result is None:
        return "scores only: no truth to compare with"
    sentence = _finding(record.result)
    if record.null_holds is False:
        sentence += "; null control is off: do not trust this number"
    return sentence


def _finding(result: MembershipMetrics) -> str:
    auc = result.metrics.get("auc")
    if auc is not None and auc.low > CHANCE:
        return "leaks membership"
    for name, estimate in result.metrics.items():
        rate = _false_positive_rate(name)
        if rate is not None and estimate.low > rate:  # though the average looks like chance
            return f"leaks membership of some records (at {100 * rate:g} % false positives)"
    worst = result.metrics.get("auc_of_most_exposed")  # its limits allow for having been picked
    if worst is not None and worst.low > CHANCE:
        return "leaks membership of the most exposed record"
    if auc is not None and auc.high < CHANCE:
        return "below chance: check the sign or the setup"
    return NOTHING_FOUND


def _false_positive_rate(name: str) -> float | None:
    """The rate in a metric's name, such as "tpr@fpr=0.01"."""
    _, found, rate = name.partition("tpr@fpr=")
    return float(rate) if found else None


def _estimate(record: EstimateRecord) -> str:
    if not record.metrics:
        return "estimates only: no figure could be given"
    if not record.chance:
        return "estimates only: nothing to compare them with"
    found = {name: record.metrics[name] for name in record.chance if name in record.metrics}
    if found and all(estimate.low > record.chance[name] for name, estimate in found.items()):
        return f"leaks {record.claim}"
    if any(estimate.low > record.chance[name] for name, estimate in found.items()):
        return "no better than where there is nothing to find, at this power"
    return NOTHING_FOUND


def _reconstruction(record: ReconstructionRecord) -> str:
    if record.num_targets == 0:
        return "made no claim"
    if not record.metrics:
        if record.of == "class":
            return "pictures shown, not judged"
        if record.refused:
            return "too few records to give a figure"
        return "claims only: no truth to compare with"
    if not set(record.metrics) & set(record.baseline):
        return "reconstructed something; there is no guess to compare it with"
    if record.leading is None:
        return "not compared with a guess update by update"
    if record.beats_guess(record.leading):  # one measure, fixed in advance: never the best of many
        default = "training data reconstructed better than a guess"
        return _BETTER.get(record.leading, default)
    return "no better than a guess at this power"

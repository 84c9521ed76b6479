"""What stands beside the attacks on a model: how well it works, and how attacks compare."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from attacks.membership.signals import is_right, true_log_probability
from fl_audit.report.model import AccessGain, Agreement, UtilitySlice
from fl_audit.results import AttackResult, Estimate, Histogram, MembershipResult
from fl_audit.stats import auc_gain_ci, difference, mean_ci, proportion

_LEVELS = ("labels", "confidences", "white box")
_MOST_CLASSES = 100
_BINS = 20


def utility(
    logits: NDArray[np.float64],
    labels: NDArray[np.int64],
    is_member: NDArray[np.bool_],
    *,
    has_classes: bool,
) -> list[UtilitySlice]:
    """Accuracy and loss on members and non-members, overall and per class.

    Args:
        logits: Of the audited model, shape (n, c).
        labels: Shape (n,).
        is_member: Shape (n,).
        has_classes: False for regression, which has no accuracy and one slice.
    """
    loss = -true_log_probability(logits, labels)
    right = is_right(logits, labels) > 0
    slices = [_slice(None, loss, right, is_member, has_classes)]
    if has_classes:
        for label in np.unique(labels)[:_MOST_CLASSES]:
            own = labels == label
            slices.append(_slice(int(label), loss[own], right[own], is_member[own], True))
    return slices


def agreement(results: Sequence[AttackResult]) -> list[Agreement]:
    """Which of the members each pair of attacks finds, by their own decisions."""
    deciding = [r for r in results if isinstance(r, MembershipResult) and r.called is not None]
    pairs = []
    for first, second in combinations(deciding, 2):
        a, b, member = _found(first), _found(second), _members(first, second)
        if member is None or a is None or b is None or not member.any():
            continue
        a, b = a[member], b[member]
        pairs.append(
            Agreement(
                first=first.record.label,
                second=second.record.label,
                both=int((a & b).sum()),
                only_first=int((a & ~b).sum()),
                only_second=int((~a & b).sum()),
                neither=int((~a & ~b).sum()),
            )
        )
    return pairs


def access_gains(results: Sequence[AttackResult]) -> list[AccessGain]:
    """The paired gain in AUC of each level of access over the one below that was tested."""
    best = {level: _best(results, level) for level in _LEVELS}
    tested = [(level, found) for level, found in best.items() if found is not None]
    gains = []
    for (less, weaker), (more, stronger) in pairwise(tested):
        common = _scored(weaker, stronger)
        assert stronger.is_member is not None
        gains.append(
            AccessGain(
                less=less,
                more=more,
                less_attack=weaker.record.label,
                more_attack=stronger.record.label,
                gain=auc_gain_ci(
                    stronger.is_member[common], stronger.scores[common], weaker.scores[common]
                ),
            )
        )
    return gains


def norm_histogram(norms: NDArray[np.float64], is_member: NDArray[np.bool_]) -> Histogram:
    """Of log10 of gradient norms, members beside non-members."""
    logs = np.log10(np.maximum(norms, 1e-12))
    low, high = float(logs.min()), float(logs.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    sides = [np.histogram(logs[side], bins=edges)[0] for side in (is_member, ~is_member)]
    shares = [(side / max(1, side.sum())).tolist() for side in sides]
    return Histogram(edges=edges.tolist(), members=shares[0], non_members=shares[1])


def _best(results: Sequence[AttackResult], level: str) -> MembershipResult | None:
    """The attack of a level with the highest AUC where a shadow model played the target."""
    able = [
        r
        for r in results
        if isinstance(r, MembershipResult)
        and r.is_member is not None
        and r.record.details is not None
        and r.record.details.access == level
        and r.record.decisions is not None
    ]
    return max(able, key=lambda r: (_on_shadow(r), r.record.label), default=None)


def _on_shadow(result: MembershipResult) -> float:
    assert result.record.decisions is not None
    return result.record.decisions.calibration_auc.value


def _scored(first: MembershipResult, second: MembershipResult) -> NDArray[np.bool_]:
    everyone = np.ones(len(first.scores), dtype=np.bool_)
    for result in (first, second):
        if result.is_scored is not None:
            everyone &= result.is_scored
    return everyone


def _members(first: MembershipResult, second: MembershipResult) -> NDArray[np.bool_] | None:
    if first.is_member is None:
        return None
    members: NDArray[np.bool_] = first.is_member & _scored(first, second)
    return members


def _found(result: MembershipResult) -> NDArray[np.bool_] | None:
    return result.called


def _slice(
    label: int | None,
    loss: NDArray[np.float64],
    right: NDArray[np.bool_],
    member: NDArray[np.bool_],
    has_classes: bool,
) -> UtilitySlice:
    sides = (member, ~member)
    accuracies = [_accuracy(right[side]) if has_classes else None for side in sides]
    losses = [mean_ci(loss[side]) if side.sum() > 1 else None for side in sides]
    wide = [_accuracy(right[side], confidence=0.975) if has_classes else None for side in sides]
    gap = None
    if wide[0] is not None and wide[1] is not None:
        gap = difference(wide[0], wide[1])
    return UtilitySlice(
        label=label,
        train_accuracy=accuracies[0],
        test_accuracy=accuracies[1],
        accuracy_gap=gap,
        train_loss=losses[0],
        test_loss=losses[1],
    )


def _accuracy(right: NDArray[np.bool_], confidence: float = 0.95) -> Estimate | None:
    if right.size == 0:
        return None
    return proportion(int(right.sum()), int(right.size), confidence=confidence)

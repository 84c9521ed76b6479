"""From scores to probabilities and decisions, by a shadow model whose members are known.

Nothing here sees the truth about the target: thresholds and probabilities are fixed on a model that
the auditor trained and on records that nobody trained on, and then applied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

PRIOR = 0.5  # of membership, before the attack: members and non-members are taken as equally likely
DECISION_FPR = 0.01
LEAST_REFERENCE = 50  # records nobody trained on, from which they set the scale of scores
_LEAST_VALUES = 20  # distinct scores of non-members from which their quantiles are compared
_MOST_BINS = 40
_PER_BIN = 20  # shadow records behind one step of the calibration


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What a shadow model in the target's place says about an attack's scores.

    Shadow and target differ a little, and scores of some attacks move with that. So scores are
    first put on the shadow's scale, by the distribution of non-members: the shadow's, and the
    target's null candidates.

    Attributes:
        scores: Of the shadow task, shape (n,).
        is_member: Its known answer, shape (n,).
        reference: The target's scores of records that nobody trained on, or None with too few.
    """

    scores: NDArray[np.float64]
    is_member: NDArray[np.bool_]
    reference: NDArray[np.float64] | None = None

    @property
    def non_members(self) -> NDArray[np.float64]:
        """What the decision's threshold is set on, ascending."""
        own = self.scores[~self.is_member] if self.reference is None else self.reference
        return np.sort(own)

    def threshold(self, fpr: float = DECISION_FPR) -> float:
        """The score above which at most a share `fpr` of known non-members lies.

        With fewer than 1 / fpr of them it is their largest score.
        """
        others = self.non_members
        allowed = int(np.floor(fpr * len(others) + 1e-9))
        return float(others[len(others) - 1 - allowed])

    def called_balanced(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Decisions at the threshold that tells the shadow's members apart best, shape (n,)."""
        called: NDArray[np.bool_] = self._aligned(scores) > self._balanced_threshold()
        return called

    def probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(member | score) with prior 0.5, shape (n,), never exactly 0 or 1.

        Shares of shadow members in bins of equally many scores, made monotone (isotonic
        regression), each with half a record of either side added (Jeffreys).
        """
        bins = max(2, min(_MOST_BINS, len(self.scores) // _PER_BIN))
        edges = np.unique(np.quantile(self.scores, np.linspace(0, 1, bins + 1)[1:-1]))
        place = np.searchsorted(edges, self.scores, side="left")
        members = np.bincount(place[self.is_member], minlength=len(edges) + 1)
        others = np.bincount(place[~self.is_member], minlength=len(edges) + 1)
        density_in = (members + 0.5) / (self.is_member.sum() + 0.5 * len(members))
        density_out = (others + 0.5) / ((~self.is_member).sum() + 0.5 * len(members))
        share = PRIOR * density_in / (PRIOR * density_in + (1 - PRIOR) * density_out)
        weight = np.maximum(members + others, 1)
        smooth = IsotonicRegression().fit(np.arange(len(share)), share, sample_weight=weight)
        steps: NDArray[np.float64] = smooth.predict(np.arange(len(share)))
        return steps[np.searchsorted(edges, self._aligned(scores), side="left")]

    def _balanced_threshold(self) -> float:
        order = np.argsort(-self.scores, kind="stable")
        scores, member = self.scores[order], self.is_member[order]
        found = np.cumsum(member) / member.sum() - np.cumsum(~member) / (~member).sum()
        last_of_ties = np.append(scores[:-1] != scores[1:], True)
        best = int(np.argmax(np.where(last_of_ties, found, -np.inf)))
        if best + 1 == len(scores):
            return float(np.nextafter(scores[best], -np.inf))
        return float((scores[best] + scores[best + 1]) / 2)

    def _aligned(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of the target on the scale of the shadow: equal quantiles of non-members.

        Beyond the outermost quantiles scores are shifted as these are, so their order is kept.
        """
        theirs, at = _ranks(self.scores[~self.is_member])
        own, where = _ranks(theirs if self.reference is None else self.reference)
        if self.reference is None or min(len(own), len(theirs)) < _LEAST_VALUES:
            return scores  # few values, such as right or wrong, mean the same in every model
        inside = np.interp(np.interp(scores, own, where), at, theirs)
        below, above = np.minimum(scores - own[0], 0), np.maximum(scores - own[-1], 0)
        aligned: NDArray[np.float64] = inside + below + above
        return aligned


def _ranks(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distinct values, ascending, and the middle of the ranks that each takes, in [0, 1]."""
    distinct, counts = np.unique(values, return_counts=True)
    middle = (np.cumsum(counts) - 0.5 * counts) / counts.sum()
    return distinct, middle

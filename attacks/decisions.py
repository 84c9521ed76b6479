"""From scores to probabilities and decisions, by a shadow model whose members are known.

Nothing here sees the truth about the target: thresholds and probabilities are fixed on a model that
the auditor trained, and then applied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

PRIOR = 0.5  # of membership, before the attack: members and non-members are taken as equally likely
DECISION_FPR = 0.01
_MOST_BINS = 40
_PER_BIN = 20  # shadow records behind one step of the calibration


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What a shadow model in the target's place says about an attack's scores.

    Attributes:
        scores: Of the shadow task, shape (n,).
        is_member: Its known answer, shape (n,).
    """

    scores: NDArray[np.float64]
    is_member: NDArray[np.bool_]

    def threshold(self, fpr: float = DECISION_FPR) -> float:
        """The score above which at most a share `fpr` of the shadow's non-members lies.

        With fewer than 1 / fpr non-members it is their largest score.
        """
        others = np.sort(self.scores[~self.is_member])
        allowed = int(np.floor(fpr * len(others) + 1e-9))
        return float(others[len(others) - 1 - allowed])

    def balanced_threshold(self) -> float:
        """The score above which members and non-members of the shadow are told apart best."""
        order = np.argsort(-self.scores, kind="stable")
        scores, member = self.scores[order], self.is_member[order]
        found = np.cumsum(member) / member.sum() - np.cumsum(~member) / (~member).sum()
        last_of_ties = np.append(scores[:-1] != scores[1:], True)
        best = int(np.argmax(np.where(last_of_ties, found, -np.inf)))
        if best + 1 == len(scores):
            return float(np.nextafter(scores[best], -np.inf))
        return float((scores[best] + scores[best + 1]) / 2)

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
        return steps[np.searchsorted(edges, scores, side="left")]

"""The scorer: compares what an attack said with the truth, which no attack sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.decisions import Calibration
from attacks.features import Features
from attacks.member_scoring import score_members
from attacks.persons import InRound
from attacks.reconstruction_scoring import score_reconstruction
from attacks.risk import Access, with_risk
from fl_audit.attack_spec import AttackOutput, MembershipScores, Reconstructions
from fl_audit.game import GameTruth, MembershipGame
from fl_audit.results import AttackResult


def score(
    output: AttackOutput,
    header: Mapping[str, Any],
    *,
    game: MembershipGame | None,
    truth: GameTruth | None,
    null: AttackOutput | None = None,
    is_scored: NDArray[np.bool_] | None = None,
    left_out: Mapping[str, int] | None = None,
    in_round: InRound | None = None,
    calibration: Calibration | None = None,
    access: Access = "updates",
    features: Features | None = None,
) -> AttackResult:
    """Score an attack's output.

    Args:
        output: What the attack said.
        header: The fields that every record shares.
        game: What attackers were shown.
        truth: The truth; without it, scores are kept and no figure is given.
        null: The same attack on the null candidates.
        is_scored: Candidates to compute figures from; all by default.
        left_out: Why members are not among them, and how many for each reason.
        in_round: Candidates to compute a round's figures from; those of `is_scored` by default.
        calibration: A task with a known answer, for thresholds and probabilities.
        access: What the attack's adversary has, for the report.
        features: For reconstructions: a round's model's features of records.
    """
    if isinstance(output, MembershipScores):
        assert game is not None  # the runner refuses a membership attack without candidates
        null_scores = null.scores if isinstance(null, MembershipScores) else None
        result = score_members(
            output,
            header,
            game=game,
            truth=truth,
            null_scores=null_scores,
            is_scored=is_scored,
            left_out=left_out or {},
            in_round=in_round,
        )
        return with_risk(result, calibration, access)
    assert isinstance(output, Reconstructions)  # estimates: attacks/estimates.py
    return score_reconstruction(output, header, game=game, truth=truth, features=features)

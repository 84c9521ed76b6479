"""The scorer: what it draws, and what it refuses. Reconstructions: test_reconstruction_scoring."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.member_scoring import membership_metrics
from attacks.scoring import score
from fl_audit.attack_spec import MembershipScores
from fl_audit.errors import InputError
from fl_audit.game import GameRules, GameTruth, MembershipGame
from fl_audit.records import Records
from fl_audit.results import MembershipResult

SEED = 20_261_123
RULES = GameRules(decided_by="lot", non_members_per_member=1, groups=1, null_groups=0)
HEADER = {
    "label": "x",
    "attack": "x",
    "seed": 0,
    "settings": {},
    "requires": [],
    "knows": [],
    "reference": "https://example.org",
    "summary": "",
    "rounds": [1],
}


def records(n: int) -> Records:
    return Records(np.arange(n), np.zeros((n, 2), dtype=np.float32), np.zeros(n, dtype=np.int64))


def game(n: int, null: int = 0) -> MembershipGame:
    return MembershipGame(RULES, records(n), records(null), records(3), num_classes=2)


def truth(n: int, null: int = 0) -> GameTruth:
    return GameTruth(np.arange(n) % 2 == 0, np.zeros(n, dtype=np.int64), np.arange(null) % 2 == 0)


def test_a_perfect_curve_keeps_its_corner() -> None:
    member = np.arange(1000) < 500
    curve = membership_metrics(member, np.where(member, 2.0, 1.0) + np.linspace(0, 0.1, 1000)).roc
    assert list(zip(curve.fpr, curve.tpr, strict=True)) == [(0, 0), (0, 1), (1, 1)]


def test_a_long_curve_is_thinned_to_points_of_itself() -> None:
    rng = np.random.default_rng(SEED)
    member = rng.random(50_000) < 0.5
    curve = membership_metrics(member, rng.normal(size=50_000)).roc
    assert len(curve.fpr) <= 401
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    assert sum(f < 0.01 for f in curve.fpr) > 100


def test_too_few_non_members_are_said_not_guessed() -> None:
    member = np.arange(400) % 2 == 0
    metrics = membership_metrics(member, member.astype(float))
    assert "tpr@fpr=0.001" not in metrics.metrics
    assert "1000" in metrics.refused["tpr@fpr=0.001"]
    assert "437 can" in metrics.refused["tpr@fpr=0.01 (lower limit)"]


def test_a_null_that_is_off_is_found() -> None:
    n = 400
    scores = np.arange(n, dtype=np.float64)
    peeking = (np.arange(n) % 2 == 0).astype(np.float64)
    for null_scores, holds in ((scores, True), (peeking, False)):
        result = score(
            MembershipScores(scores), HEADER, game=game(n, n), truth=truth(n, n),
            null=MembershipScores(null_scores),
        )  # fmt: skip
        assert isinstance(result, MembershipResult)
        assert result.record.null_holds is holds


def test_members_that_do_not_count_are_said_with_the_reason() -> None:
    """Members whose membership was granted are left out of figures, too; that is no reason."""
    scored, reasons = np.arange(10) < 4, {"they slept": 2}
    result = score(
        MembershipScores(np.arange(10.0)), HEADER, game=game(10), truth=truth(10),
        is_scored=scored, left_out=reasons,
    )  # fmt: skip
    assert isinstance(result, MembershipResult)
    assert result.record.notes == [
        "2 of 5 members were held by clients but went into no update that counts "
        "(2: they slept); their groups are left out."
    ]
    with pytest.raises(InputError, match=r"no member went into a usable update.*5: they slept"):
        score(
            MembershipScores(np.arange(10.0)), HEADER, game=game(10), truth=truth(10),
            is_scored=scored & False, left_out={"they slept": 5},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros(3), "one score per candidate"),
        (np.array([0, 1, np.nan, 0]), "row 2 is not finite"),
    ],
)
def test_bad_scores_are_refused(scores: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(MembershipScores(scores), HEADER, game=game(4), truth=truth(4))


def test_one_score_for_all_is_no_signal_not_chance() -> None:
    with pytest.raises(InputError, match="no signal"):
        score(MembershipScores(np.zeros(4)), HEADER, game=game(4), truth=truth(4))

"""The scorer: what it draws, what it refuses, and how it pairs reconstructions with originals."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.member_scoring import membership_metrics
from attacks.scoring import PSNR_CAP, psnr, score
from fl_audit.attack_spec import MembershipScores, Reconstruction, Reconstructions
from fl_audit.errors import InputError
from fl_audit.game import GameRules, GameTruth, MembershipGame, Target
from fl_audit.records import Records
from fl_audit.results import MembershipResult, ReconstructionResult

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


def truth(n: int, null: int = 0, targets: tuple[Target, ...] = ()) -> GameTruth:
    return GameTruth(np.arange(n) % 2 == 0, np.zeros(n, dtype=np.int64), np.arange(null) % 2 == 0,
                     targets)  # fmt: skip


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


def test_reconstructions_are_paired_with_the_nearest_originals() -> None:
    originals = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.0]], dtype=np.float32)
    target = Target(2, 7, originals, np.array([0, 1, 1]))
    claim = Reconstruction(2, 7, originals[[2, 0, 1]].astype(np.float64), np.array([1, 2]))
    unknown = Reconstruction(3, 7, np.zeros((1, 2)))
    result = score(
        Reconstructions((claim, unknown)), HEADER, game=game(2), truth=truth(2, targets=(target,))
    )
    assert isinstance(result, ReconstructionResult)
    assert result.record.num_targets == 2
    metrics = result.record.metrics
    assert metrics["psnr_db"].value == PSNR_CAP
    assert metrics["psnr_db"].high == PSNR_CAP
    assert metrics["exact"].value == 1
    assert metrics["label_overlap"].value == 1
    assert metrics["label_overlap"].n == 1  # labels of one update are one trial
    found = result.arrays["round_0002/client_7/reconstruction"]
    assert (found == result.arrays["round_0002/client_7/original"]).all()
    assert "round_0003/client_7/original" not in result.arrays


def test_psnr_by_hand() -> None:
    assert psnr(np.full(4, 0.1), np.zeros(4)) == pytest.approx(20)
    assert psnr(np.zeros(4), np.zeros(4)) == PSNR_CAP


def test_one_score_for_all_is_no_signal_not_chance() -> None:
    with pytest.raises(InputError, match="no signal"):
        score(MembershipScores(np.zeros(4)), HEADER, game=game(4), truth=truth(4))


def test_one_reconstruction_is_exact_or_not_and_has_no_mean() -> None:
    original = np.array([[0.25, 0.5]], dtype=np.float32)
    target = Target(1, 0, original, np.array([1]))
    result = score(
        Reconstructions((Reconstruction(1, 0, original.astype(np.float64)),)),
        HEADER,
        game=game(2),
        truth=truth(2, targets=(target,)),
    )
    assert isinstance(result, ReconstructionResult)
    assert result.record.metrics["exact"].value == 1
    assert result.record.metrics["exact"].low == pytest.approx(0.025)
    assert "psnr_db" in result.record.refused

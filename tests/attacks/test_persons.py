"""From records to persons, by hand."""

from __future__ import annotations

import numpy as np

from attacks.persons import person_means
from attacks.scoring import score
from fl_audit.attack_spec import MembershipScores
from fl_audit.game import GameRules, GameTruth, MembershipGame
from fl_audit.records import Records
from fl_audit.results import MembershipResult

HEADER = {
    "label": "x",
    "attack": "x",
    "seed": 0,
    "settings": {},
    "requires": [],
    "knows": [],
    "reference": "",
    "summary": "",
    "rounds": [1],
}


def test_means_by_person_whatever_the_order() -> None:
    users = np.array([7, 3, 7, 5, 3, 7])
    values = np.arange(12.0).reshape(2, 6)
    persons, means = person_means(values, users)
    assert persons.tolist() == [3, 5, 7]
    np.testing.assert_allclose(means, [[2.5, 3, 7 / 3], [8.5, 9, 25 / 3]])


def test_n_counts_persons_and_not_their_records() -> None:
    """40 persons with 5 records each: alike records do not make the interval narrower."""
    persons, each = 40, 5
    users = np.repeat(np.arange(persons) + 100, each)
    member = users % 2 == 0
    n = len(users)
    rules = GameRules(
        decided_by="lot",
        non_members_per_member=1,
        groups=persons // 2,
        null_groups=0,
        unit="user",
        fresh_per_user=each,
    )
    records = Records(np.arange(n), np.zeros((n, 2), np.float32), np.zeros(n, np.int64))
    game = MembershipGame(
        rules, records, records.take([]), records.take([]), 2, users=users, null_users=users[:0]
    )
    truth = GameTruth(member, np.zeros(n, np.int64), np.zeros(0, np.bool_))
    scores = users % 7 + 0.1 * np.tile(np.arange(each), persons)
    counts = users < 130  # the last ten persons went into no update

    def in_round(number: int) -> np.ndarray:
        return users < 120

    result = score(
        MembershipScores(scores, per_round={1: scores}),
        HEADER,
        game=game,
        truth=truth,
        is_scored=counts,
        left_out={"why": 25},
        in_round=in_round,
    )
    assert isinstance(result, MembershipResult)
    record = result.record
    assert record.unit == "user"
    assert record.result is not None
    assert record.result.metrics["auc"].n == 30
    assert record.timeline[0].auc.n == 20
    assert result.candidates.ids.tolist() == list(range(100, 140))
    np.testing.assert_allclose(result.scores, np.arange(100, 140) % 7 + 0.2)
    assert any("5 of 20 members" in note for note in record.notes)

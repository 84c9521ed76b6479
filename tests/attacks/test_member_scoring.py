"""What is scored beside the figures of all rounds and all records: rounds, and kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from attacks.scoring import score
from fl_audit.attack_spec import MembershipScores
from fl_audit.errors import InputError
from fl_audit.game import GameRules, GameTruth, MembershipGame
from fl_audit.records import Records
from fl_audit.results import MembershipResult

N = 120
RULES = GameRules(decided_by="lot", non_members_per_member=1, groups=60, null_groups=60)
MEMBER = np.arange(N) % 2 == 0
HEADER = {
    "label": "x",
    "attack": "x",
    "seed": 0,
    "settings": {},
    "requires": [],
    "knows": [],
    "reference": "",
    "summary": "",
    "rounds": [1, 2, 3],
}


def game(kinds: np.ndarray | None = None) -> MembershipGame:
    records = Records(np.arange(N), np.zeros((N, 2), np.float32), np.zeros(N, np.int64))
    return MembershipGame(
        RULES, records, records, records.take([]), 2, kinds=kinds, null_kinds=kinds
    )


TRUTH = GameTruth(MEMBER, np.zeros(N, np.int64), MEMBER)


def scored(output: MembershipScores, **options: object) -> MembershipResult:
    kinds = options.pop("kinds", None)
    found = score(output, HEADER, game=game(kinds), truth=TRUTH, **options)  # type: ignore[arg-type]
    assert isinstance(found, MembershipResult)
    return found


def test_a_round_is_scored_on_those_that_count_in_it() -> None:
    """In round 1 the first half counts and is told apart; the rest is misled, and left out."""
    first = np.arange(N) < 60
    scores = np.where(first, MEMBER, ~MEMBER).astype(float) + np.arange(N) * 1e-6
    found = scored(
        MembershipScores(scores, per_round={2: scores, 1: scores}),
        in_round=lambda number: first if number == 1 else ~first,
    ).record
    assert [(p.round, p.auc.value, p.auc.n) for p in found.timeline] == [(1, 1, 60), (2, 0, 60)]
    assert found.result is not None
    assert found.result.metrics["auc"].n == N


def test_a_round_that_says_nothing_is_left_out() -> None:
    """All alike, too few, or not finite: no AUC of 0.5 by ties."""
    noise = np.random.default_rng(3).normal(size=N)
    rounds = {1: np.zeros(N), 2: np.where(MEMBER, np.nan, 1), 3: noise, 4: noise}
    found = scored(
        MembershipScores(noise, per_round=rounds),
        in_round=lambda number: np.arange(N) < (3 if number == 4 else N),
    ).record
    assert [point.round for point in found.timeline] == [3]


def test_the_headline_is_of_natural_records_and_canaries_stand_apart() -> None:
    kinds = np.repeat([0, 1, 2], N // 3)
    told = np.where(kinds == 0, np.random.default_rng(5).random(N), MEMBER + np.arange(N) * 1e-6)
    null = np.random.default_rng(6).random(N)
    result = scored(MembershipScores(told), null=MembershipScores(null), kinds=kinds)
    record = result.record
    assert record.result is not None
    assert record.null is not None
    assert record.result.num_members == record.null.num_members == 20
    assert record.result.metrics["auc"].value < 0.8
    assert set(record.slices) == {"mislabelled", "out-of-distribution"}
    for part in record.slices.values():
        assert part.result.metrics["auc"].value == 1
        assert part.null is not None
        assert part.null.metrics["auc"].n == 40
    assert result.is_scored is not None
    assert (result.is_scored == (kinds == 0)).all()
    assert result.null_scores is not None
    assert len(result.null_scores) == 40


def test_a_kind_of_which_too_few_count_has_a_note_and_no_figure() -> None:
    kinds = np.repeat([0, 1], [N - 20, 20])
    record = scored(
        MembershipScores(np.random.default_rng(7).random(N)),
        kinds=kinds,
        is_scored=np.arange(N) < N - 18,
    ).record
    assert record.slices == {}
    assert "No figures on mislabelled canaries: 1 members count." in record.notes


def test_canaries_alone_are_no_result() -> None:
    kinds = np.repeat([0, 1], N // 2)
    with pytest.raises(InputError, match=r"no natural member is left to score.*known_fraction"):
        scored(MembershipScores(np.arange(N) * 1.0), kinds=kinds, is_scored=kinds == 1)


def test_a_real_run_has_a_timeline_and_kinds_in_its_files(
    run_tables: object, tmp_path: Path
) -> None:
    """Half of the clients are sampled: in each round only their candidates are scored."""
    out = run_tables(  # type: ignore[operator]
        "canaries",
        federation={"clients": 4, "rounds": 3, "fraction": 0.5},
        game={"canaries": {"mislabelled": 10, "out_of_distribution": 10}},
        audit={"attacks": ["cosine", "loss_threshold"]},
    )
    from fl_audit.report.model import load_report

    report = load_report(out / "report.json")
    by_label = {record.label: record for record in report.attacks}
    cosine = by_label["cosine"]
    assert cosine.kind == "membership"
    assert [point.round for point in cosine.timeline] == [1, 2, 3]
    assert all(point.auc.n < 160 for point in cosine.timeline)
    assert set(cosine.slices) == {"mislabelled", "out-of-distribution"}
    final = by_label["loss_threshold"]
    assert final.kind == "membership"
    assert final.timeline == []
    assert final.slices["mislabelled"].null is not None  # with the small null of attacks on models
    kinds = pq.read_table(out / "results" / "cosine.parquet")["kind"].to_pylist()
    assert kinds.count("mislabelled") == 20

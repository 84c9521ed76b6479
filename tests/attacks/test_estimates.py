"""The scorer of estimates: closed forms, trials, what is kept without truth, report and console."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from attacks.estimates import score_estimate
from attacks.paired import paired_gain
from fl_audit.cli import console as console_module
from fl_audit.errors import InputError
from fl_audit.estimates import (
    AttributeGuesses,
    LabelShare,
    LabelShares,
    PropertyScores,
    SourceScores,
)
from fl_audit.game import GameRules, GameTruth, MembershipGame
from fl_audit.records import Records
from fl_audit.report.build import read_results
from fl_audit.report.model import load_report
from fl_audit.report.verdict import NOTHING_FOUND, verdict
from fl_audit.results import EstimateRecord
from fl_audit.run_directory import RunDirectory

HEADER: dict[str, Any] = {
    "label": "a",
    "attack": "a",
    "seed": 0,
    "settings": {},
    "requires": [],
    "knows": [],
    "reference": "https://example.org",
    "summary": "s",
    "rounds": [1, 2],
}
N = 40


def game(n: int = N, auxiliary: int = 4) -> MembershipGame:
    """Pairs, the first of each a member."""
    rules = GameRules(decided_by="x", non_members_per_member=1, groups=n // 2, null_groups=0)
    records = Records(np.arange(n), np.zeros((n, 2), np.float32), np.zeros(n, np.int64))
    other = Records(
        np.arange(auxiliary), np.zeros((auxiliary, 2), np.float32), np.arange(auxiliary)
    )
    return MembershipGame(rules, records, records.take([]), other, 4)


def truth(n: int = N, **changes: Any) -> GameTruth:
    is_member = np.arange(n) % 2 == 0
    clients = np.repeat(np.arange(n // 2) % 4, 2)
    return GameTruth(is_member, clients, np.zeros(0, np.bool_), **changes)


def source(guess: np.ndarray[Any, Any], clients: tuple[int, ...] = (0, 1, 2, 3)) -> SourceScores:
    scores = (np.array(clients)[:, None] == guess).astype(np.float64)
    return SourceScores(clients, scores, per_round={1: (clients, scores)})


def score(output: Any, **changes: Any) -> EstimateRecord:
    given: dict[str, Any] = {"game": game(), "truth": truth()}
    return score_estimate(output, HEADER, **(given | changes)).record


def test_source_beats_chance_and_its_null() -> None:
    """All members right, all non-members wrong."""
    own = truth()
    guess = np.where(own.is_member, own.client, (own.client + 1) % 4)
    record = score(source(guess))
    assert record.metrics["accuracy"].value == 1
    assert record.metrics["accuracy"].n == N // 2  # members, not candidates or rounds
    assert record.chance == {"accuracy": 0.25, "gain_over_non_members": 0}
    assert record.null["accuracy"].value == 0
    assert verdict(record) == "leaks which client holds a record"


def test_what_classes_alone_give_away_is_not_called_a_leak() -> None:
    """Members and their partners are found alike: accuracy 1, but no gain."""
    record = score(source(truth().client))
    assert record.metrics["accuracy"].low > 0.25
    assert record.metrics["gain_over_non_members"].value == 0
    assert verdict(record).startswith("no better than")


def test_source_counts_only_members_that_were_used() -> None:
    own = truth()
    is_scored = np.arange(N) < 20
    record = score(source(own.client), is_scored=is_scored)
    assert record.metrics["accuracy"].n == 10
    uses = np.zeros((N, 2), np.bool_)
    uses[:6:2, 0] = True
    timed = score(source(own.client), truth=truth(uses=uses))
    assert [(point.round, point.estimate.n) for point in timed.timeline] == [(1, 3)]


def test_clients_never_seen_are_guessed_wrong() -> None:
    own = truth()
    record = score(source(np.minimum(own.client, 2), clients=(0, 1, 2)))
    assert record.metrics["accuracy"].value == pytest.approx(0.75)
    assert record.chance["accuracy"] == pytest.approx(1 / 3)


COUNTS = np.array([[10, 0, 0, 0], [0, 5, 5, 0], [2, 2, 3, 3]])


def labels(shares: list[list[float]], rounds: int = 2) -> LabelShares:
    return LabelShares(
        tuple(
            LabelShare(number, (client,), np.array(row) > 0, np.array(row))
            for number in range(1, rounds + 1)
            for client, row in enumerate(shares)
        )
    )


def test_overlap_is_one_minus_total_variation() -> None:
    """Overlaps by hand; the guess is a quarter of each class."""
    found = labels([[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0.2, 0.2, 0.3, 0.3]])
    record = score(found, truth=truth(client_labels=COUNTS))
    assert record.metrics["overlap"].value == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert record.metrics["overlap"].n == 3  # clients: two rounds of one are one trial
    assert record.baseline["overlap"].value == pytest.approx((0.25 + 0.5 + 0.9) / 3)
    assert record.metrics["presence_f1"].value == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert record.chance == {"overlap_gain": 0}
    assert [point.round for point in record.timeline] == [1, 2]


def test_a_sum_is_one_trial_without_an_interval_for_the_gain() -> None:
    mix = COUNTS.sum(axis=0) / COUNTS.sum()
    found = LabelShares(tuple(LabelShare(number, (0, 1, 2), mix > 0, mix) for number in (1, 2, 3)))
    record = score(found, truth=truth(client_labels=COUNTS))
    assert record.metrics["overlap"].value == pytest.approx(1)
    assert record.metrics["overlap"].n == 1
    assert "no interval" in record.refused["overlap_gain"]


def test_runs_of_older_versions_are_scored_without_labels() -> None:
    record = score(labels([[1, 0, 0, 0]]))
    assert not record.metrics
    assert "did not record" in record.refused["overlap"]


def test_property_auc_is_over_clients() -> None:
    counts = np.zeros((8, 4), np.int64)
    counts[:, 0] = 10
    counts[:4, 1] = 10
    scores = {(r, c): float(-c) for r in (1, 2) for c in range(8)}
    null = tuple({key: float(sign * key[1]) for key in scores} for sign in (1, -1))
    output = PropertyScores("class:1", scores, null, 0.0)
    record = score(output, truth=truth(client_labels=counts))
    assert record.metrics["auc"].value == 1
    assert record.metrics["auc"].n == 8
    assert record.null["auc"].value == pytest.approx(0.5)


def attribute(update: np.ndarray[Any, Any], combined: np.ndarray[Any, Any]) -> AttributeGuesses:
    """True bin: 0 everywhere. The imputer says 1 of the first half."""
    imputed = (np.arange(N) < N // 2).astype(np.int64)
    return AttributeGuesses(1, np.array([0.5]), np.zeros((N, 2)), update, imputed, combined)


def test_attribute_gain_is_paired_with_the_imputer() -> None:
    right, wrong = np.zeros(N, np.int64), np.ones(N, np.int64)
    update = np.where(truth().is_member, right, wrong)
    record = score(attribute(update, right))
    assert record.metrics["accuracy"].value == 1
    assert record.baseline["accuracy"].value == 0.5
    assert record.metrics["gain_over_imputer"].value == pytest.approx(0.5)
    assert record.metrics["accuracy_of_update_alone"].value == 1
    assert record.null["accuracy_of_update_alone"].value == 0
    assert verdict(record) == "leaks an unknown value of a member’s record"
    everybody = score(attribute(right, right))  # what the model knows of non-members as well
    assert verdict(everybody).startswith("no better than")
    same = score(attribute(right, attribute(right, right).imputed))
    assert verdict(same) == NOTHING_FOUND


@pytest.mark.parametrize(
    "output",
    [
        source(truth().client),
        labels([[1, 0, 0, 0]]),
        PropertyScores("class:1", {(1, 0): 0.0}, (), 0.0),
        attribute(np.zeros(N, np.int64), np.zeros(N, np.int64)),
    ],
)
def test_without_truth_everything_is_kept_and_nothing_claimed(output: Any) -> None:
    result = score_estimate(output, HEADER, game=game(), truth=None)
    assert not result.record.metrics
    assert result.record.refused == {"every figure": "no truth to compare with"}
    assert len({len(column) for column in result.table.values()}) == 1
    assert verdict(result.record).startswith("estimates only")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="need one per client and candidate"):
        score(SourceScores((0, 1), np.zeros((3, N))))
    with pytest.raises(InputError, match="need one for each candidate"):
        score(attribute(np.zeros(3, np.int64), np.zeros(N, np.int64)))
    with pytest.raises(InputError, match=r"one of fl_audit\.estimates"):
        score(np.zeros(3))


def test_paired_gain_has_no_interval_of_width_zero() -> None:
    ones, zeros = np.ones(20), np.zeros(20)
    same, all_gain = paired_gain(ones, ones), paired_gain(ones, zeros)
    assert same.low < same.value == 0 < same.high
    assert all_gain.value == all_gain.high == 1
    assert 0.6 < all_gain.low < 1
    with pytest.raises(InputError, match="one pair has no interval"):
        paired_gain(ones[:1], zeros[:1])


def test_results_are_saved_reported_and_printed(
    run_tables: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["source_inference", "label_distribution", "local_label_distribution"]
    run = run_tables("reported", federation={"rounds": 2}, audit={"attacks": names})
    records = read_results(RunDirectory.open(run))
    assert [record.kind for record in records] == ["estimate"] * 3
    table = pq.read_table(run / "results" / "source_inference.parquet")
    assert {"id", "guess", "client", "is_right"} <= set(table.column_names)
    report = load_report(run / "report.json")
    assert {record.label for record in report.attacks} == set(names)
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("What was inferred about clients and records", "Round by round", "Baseline"):
        assert words in page
    written = io.StringIO()
    monkeypatch.setattr(console_module, "console", Console(file=written, width=160))
    console_module.print_results(records)
    assert "gain_over_non_members" in written.getvalue()
    assert "chance 0.000" in written.getvalue()


def test_figures_are_of_natural_records_only() -> None:
    """Canaries are no average: a guess that is right for them only is right for nobody."""
    clients = np.repeat(np.arange(N // 2) % 4, 2)
    is_canary = np.arange(N) < 20
    scores = np.zeros((4, N))
    scores[np.where(is_canary, clients, (clients + 1) % 4), np.arange(N)] = 1
    given = replace(game(), kinds=np.where(is_canary, 1, 0))
    result = score_estimate(SourceScores((0, 1, 2, 3), scores), HEADER, game=given, truth=truth())
    accuracy = result.record.metrics["accuracy"]
    assert (accuracy.value, accuracy.n) == (0, 10)

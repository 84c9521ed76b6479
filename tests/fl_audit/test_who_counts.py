"""Who counts, by hand: one candidate a client, and everything that can befall a client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_audit.game import GameRules, GameTruth, MembershipGame
from fl_audit.records import Records
from fl_audit.trace import RecordingPolicy, Reply, Trace, TraceWriter
from fl_audit.who_counts import members_left_out, scored_candidates

CLIENTS = 6
IDLE, FAILED, NAN, MISFIT, ELSEWHERE, HONEST = range(CLIENTS)  # what becomes of each in round 1
NOT_SAMPLED = "their client was not sampled in a recorded round"
NO_REPLY = "their client failed, or no usable reply of it was recorded"
NOT_TRAINED = "their client did not train on them"
NOT_KEPT = "the recording policy (or its cap, or the disk) did not keep the update"


def model(value: float, size: int = 2) -> dict[str, np.ndarray]:
    return {"w": np.full(size, value, dtype=np.float32)}


def record(folder: Path, policy: RecordingPolicy) -> Trace:
    """Round 1 as above; in round 2 the honest client alone."""
    writer = TraceWriter(folder, policy)
    writer.begin_round(1, model(0), [FAILED, NAN, MISFIT, ELSEWHERE, HONEST])
    replies = [
        Reply(FAILED, None, error_code=1),
        Reply(NAN, model(np.nan)),
        Reply(MISFIT, model(1, size=3)),
        Reply(ELSEWHERE, model(2)),
        Reply(HONEST, model(3)),
    ]
    writer.add_replies(1, replies)
    writer.end_round(1, model(4), {})
    writer.begin_round(2, model(4), [HONEST])
    writer.add_replies(2, [Reply(HONEST, model(5))])
    writer.end_round(2, model(6), {})
    writer.close()
    return Trace.open(folder)


def candidates() -> tuple[MembershipGame, GameTruth]:
    """A member and a non-member of each client; ELSEWHERE trains on others."""
    n = 2 * CLIENTS
    records = Records(np.arange(n), np.zeros((n, 1), np.float32), np.zeros(n, np.int64))
    rules = GameRules(decided_by="lot", non_members_per_member=1, groups=CLIENTS, null_groups=0)
    member, client = np.arange(n) % 2 == 0, np.arange(n) // 2
    uses = np.repeat((member & (client != ELSEWHERE))[:, None], 2, axis=1)
    game = MembershipGame(rules, records, records.take([]), records.take([]), 1)
    return game, GameTruth(member, client, np.zeros(0, np.bool_), uses=uses)


def clients_that_count(trace: Trace, **options: object) -> list[int]:
    game, truth = candidates()
    mask = scored_candidates(game, truth, trace, **options).reshape(-1, 2)  # type: ignore[arg-type]
    assert (mask[:, 0] == mask[:, 1]).all()
    return np.flatnonzero(mask[:, 0]).tolist()


def reasons(trace: Trace, **options: object) -> dict[str, int]:
    return members_left_out(candidates()[1], trace, **options)  # type: ignore[arg-type]


def test_with_everything_recorded(tmp_path: Path) -> None:
    trace = record(tmp_path / "t", RecordingPolicy())
    assert clients_that_count(trace, kept_only=True) == [HONEST]
    assert reasons(trace, kept_only=True) == {NOT_SAMPLED: 1, NO_REPLY: 3, NOT_TRAINED: 1}


def test_for_the_final_model_it_is_no_matter_what_was_kept(tmp_path: Path) -> None:
    for number, policy in enumerate(POLICIES):
        trace = record(tmp_path / str(number), policy)
        assert HONEST in clients_that_count(trace)
        assert NOT_KEPT not in reasons(trace)


POLICIES = [
    RecordingPolicy(),
    RecordingPolicy(record="none"),
    RecordingPolicy(record="targets", clients=[ELSEWHERE]),
    RecordingPolicy(record="targets", rounds=[1]),
    RecordingPolicy(max_megabytes=0.0001),
]


@pytest.mark.parametrize("policy", [POLICIES[1], POLICIES[2], POLICIES[4]])
def test_an_update_that_was_not_kept_does_not_count(
    policy: RecordingPolicy, tmp_path: Path
) -> None:
    trace = record(tmp_path / "t", policy)
    assert clients_that_count(trace, kept_only=True) == []
    found = reasons(trace, kept_only=True)
    assert found[NOT_SAMPLED] == 1
    assert found[NOT_KEPT] >= 1
    assert sum(found.values()) == CLIENTS


def test_rounds_are_looked_at_up_to_the_last_one_in_view(tmp_path: Path) -> None:
    trace = record(tmp_path / "t", RecordingPolicy(record="targets", rounds=[2]))
    assert clients_that_count(trace, kept_only=True) == [HONEST]
    assert clients_that_count(trace, kept_only=True, up_to=1) == []
    assert reasons(trace, kept_only=True, up_to=1)[NOT_KEPT] == 3  # NaN and misfit: nobody looked


def test_one_round_alone(tmp_path: Path) -> None:
    trace = record(tmp_path / "t", RecordingPolicy())
    for number, expected in ((1, [HONEST]), (2, [HONEST]), (3, [])):
        assert clients_that_count(trace, only=number, kept_only=True) == expected
    assert clients_that_count(trace, only=1) == [MISFIT, HONEST]
    assert clients_that_count(trace, only=2) == [HONEST]
    trace = record(tmp_path / "kept", RecordingPolicy(record="targets", rounds=[2]))
    assert clients_that_count(trace, only=1, kept_only=True) == []
    assert clients_that_count(trace, only=2, kept_only=True) == [HONEST]


def test_where_nobody_knows_what_was_used_all_count(tmp_path: Path) -> None:
    game, truth = candidates()
    blind = GameTruth(truth.is_member, truth.client, truth.null_is_member)
    trace = record(tmp_path / "t", RecordingPolicy(record="none"))
    assert scored_candidates(game, blind, trace, kept_only=True).all()
    assert members_left_out(blind, trace, kept_only=True) == {}

"""Who counts: which candidates of a game went into an update, and why others did not."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fl_audit.game import GameTruth, MembershipGame
from fl_audit.trace import RoundIndex, Trace
from fl_audit.trace.usable import usable_clients

_STAGES = (
    "their client was not sampled in a recorded round",
    "their client failed, or no usable reply of it was recorded",
    "their client did not train on them",
    "the recording policy (or its cap, or the disk) did not keep the update",
)
"""What keeps a member from counting, in the order in which a round can lose it."""


def scored_candidates(
    game: MembershipGame,
    truth: GameTruth,
    trace: Trace,
    *,
    up_to: int | None = None,
    only: int | None = None,
    kept_only: bool = False,
) -> NDArray[np.bool_]:
    """Candidates whose membership means something: their group's member was really trained on.

    A record that a client holds but never used - it was not sampled, it failed, it sent NaN, or
    drew other examples - is neither a member nor a non-member. Its whole group is left out, so that
    both sides keep the same classes.

    Args:
        up_to: Last round to count.
        only: The one round to count: who counts in a timeline.
        kept_only: Count an update only if it was kept together with the model it belongs to, as
            attacks on updates need; for attacks on the final model, what was kept is no matter.

    Returns:
        Shape (n,). All True where it is not known what clients used.
    """
    if truth.uses is None:
        return np.ones(len(truth.is_member), dtype=np.bool_)
    rounds = [n for n in trace.rounds if only in (None, n) and (up_to is None or n <= up_to)]
    used = _last_stage(truth, trace, rounds, kept_only) == len(_STAGES)
    groups = (used & truth.is_member).reshape(-1, game.rules.non_members_per_member + 1)
    return np.repeat(groups.any(axis=1), groups.shape[1])


def members_left_out(
    truth: GameTruth, trace: Trace, *, up_to: int | None = None, kept_only: bool = False
) -> dict[str, int]:
    """Why members do not count (see `scored_candidates`), and how many for each reason."""
    if truth.uses is None:
        return {}
    rounds = [number for number in trace.rounds if up_to is None or number <= up_to]
    last = _last_stage(truth, trace, rounds, kept_only)[truth.is_member]
    counts = {why: int((last == stage).sum()) for stage, why in enumerate(_STAGES)}
    return {why: count for why, count in counts.items() if count}


def _last_stage(
    truth: GameTruth, trace: Trace, rounds: Iterable[int], kept_only: bool
) -> NDArray[np.int64]:
    """How far each candidate came in any round: the stage it stopped at; 4 = it counts."""
    assert truth.uses is not None
    reached = np.zeros(len(truth.is_member), dtype=np.int64)
    for number in rounds:
        if number > truth.uses.shape[1]:
            continue
        index = trace.round(number)
        sampled = np.isin(truth.client, index.sampled)
        answered = np.isin(truth.client, _answered(index, kept_only=kept_only))
        used = answered & truth.uses[:, number - 1]
        kept = used & np.isin(truth.client, _kept(index)) if kept_only else used
        for stage, here in enumerate((sampled, answered, used, kept), start=1):
            reached[here] = np.maximum(reached[here], stage)
    return reached


def _answered(index: RoundIndex, *, kept_only: bool) -> list[int]:
    """Clients whose reply went into the aggregate, stored or not."""
    unfit = {client for client, why in usable_clients(index).items() if why is not None}
    return [
        reply.client
        for reply in index.replies
        if reply.error_code is None
        and reply.is_finite is not False
        and (not kept_only or reply.was_left_out or reply.client not in unfit)
    ]


def _kept(index: RoundIndex) -> list[int]:
    """Clients whose update an attack can take: their reply fits a model that was kept with it."""
    if index.broadcast is None or not index.broadcast.is_stored:
        return []
    return [client for client, why in usable_clients(index).items() if why is None]

"""From records to persons: where a lot decides about a person, the person is what is scored.

A person's records are trained on together or not at all, so they are no independent trials. Each
person gets one score, the mean over the records that are asked about, and n counts persons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fl_audit.attack_spec import MembershipScores
from fl_audit.game import GameTruth, MembershipGame
from fl_audit.records import Records

Mask = NDArray[np.bool_]
InRound = Callable[[int], Mask]
"""Round: candidates that count in it, shape (n,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """A game with what an attack said in it, and who counts.

    Attributes:
        output: Scores of the candidates.
        null_scores: Scores of the null candidates, or None.
        is_scored: Candidates to compute figures from, shape (n,).
        in_round: The same for one round.
        left_out: Why members are not among them, and how many for each reason.
    """

    game: MembershipGame
    truth: GameTruth | None
    output: MembershipScores
    null_scores: NDArray[np.float64] | None
    is_scored: Mask
    in_round: InRound
    left_out: Mapping[str, int]


def person_means(
    values: NDArray[np.float64], users: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Mean over each person's records.

    Args:
        values: Shape (..., n).
        users: Person of each record, shape (n,).

    Returns:
        Persons, ascending, shape (p,), and means of shape (..., p).
    """
    persons, counts = np.unique(users, return_counts=True)
    starts = np.cumsum(counts) - counts
    ordered = values[..., np.argsort(users, kind="stable")]
    means: NDArray[np.float64] = np.add.reduceat(ordered, starts, axis=-1) / counts
    return persons, means


def by_person(played: Played) -> Played:
    """One row per person, in ascending order of persons; their ids take the place of records'.

    Labels, which persons have none of, become 0. A game about records comes back as it is.
    """
    game, truth = played.game, played.truth
    users, null_users = game.users, game.null_users
    if users is None or null_users is None:
        return played
    persons, first = np.unique(users, return_index=True)
    null_persons, null_first = np.unique(null_users, return_index=True)
    scores = person_means(played.output.scores, users)[1]
    per_round = {n: person_means(s, users)[1] for n, s in played.output.per_round.items()}
    note = (
        f"The unit is the person: {len(persons)} persons, each scored by the mean over "
        f"{game.rules.fresh_per_user} records that nobody trained on. Ids are persons'."
    )
    return Played(
        game=replace(
            game,
            candidates=_stand_ins(game.candidates, persons, first),
            null=_stand_ins(game.null, null_persons, null_first),
            users=None,
            null_users=None,
        ),
        truth=None
        if truth is None
        else replace(
            truth,
            is_member=truth.is_member[first],
            client=truth.client[first],
            null_is_member=truth.null_is_member[null_first],
            uses=None,
        ),
        output=MembershipScores(scores, (note, *played.output.notes), per_round),
        null_scores=None
        if played.null_scores is None
        else person_means(played.null_scores, null_users)[1],
        is_scored=played.is_scored[first],
        in_round=lambda number: played.in_round(number)[first],
        left_out={why: n // game.rules.fresh_per_user for why, n in played.left_out.items()},
    )


def _stand_ins(records: Records, persons: NDArray[np.int64], rows: NDArray[np.int64]) -> Records:
    """One record of each person, under the person's id."""
    return Records(persons, records.take(rows).inputs, np.zeros(len(persons), dtype=np.int64))

"""User-level membership: was this person's data in the federation?

Asked with fresh records of the person, which nobody trained on. A model that was trained on other
records of the same person fits these, too, a little better than those of a stranger.

References:
    Suri, Kanani, Marathe, Peterson, "Subject membership inference attacks in federated learning",
    2022: loss threshold and loss across rounds, aggregated over a subject's records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.answers import (
    Averages,
    RoundSettings,
    RoundValues,
    Values,
    answer,
    average,
    no_signal,
    notes_on,
)
from attacks.federated.rounds import alignments, losses
from attacks.persons import person_means
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView

Base = Literal["loss_series", "cosine", "loss_slope"]


class UserMembershipSettings(RoundSettings):
    """What is measured on each fresh record, and which rounds to use."""

    base: Base = "loss_series"
    """"loss_series": minus the loss at each client's model; "cosine": of each client's update with
    the negative gradient; "loss_slope": how fast the loss at a client's model falls from round to
    round."""


def user_membership_scores(
    view: TraceView,
    candidates: Records,
    users: NDArray[np.int64],
    *,
    base: Base = "loss_series",
    asked: NDArray[np.int64] | None = None,
    rounds: Sequence[int] | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """One score per person: the mean over the person's records, averaged over rounds.

    Args:
        candidates: Fresh records.
        users: Person of each, shape (n,).
        base: What is measured on a record (`UserMembershipSettings.base`).
        asked: Client in question for each record, shape (n,), the same for all of a person; None:
            any client, so the largest over clients counts.
        rounds: Rounds to use; all by default.

    Returns:
        Persons, ascending, shape (p,), and scores, shape (p,): nats, cosines, or nats per round;
        higher = more likely that clients trained on data of the person.

    Raises:
        ObservationError: If the view does not grant what `base` needs.
        InputError: If there is no usable update, or fewer than two rounds for a slope.
    """
    persons, first = np.unique(users, return_index=True)
    found = _measure(view, candidates, users, base, rounds, device)
    return persons, answer(found.clients, found.means, None if asked is None else asked[first])


def _measure(
    view: TraceView,
    candidates: Records,
    users: NDArray[np.int64],
    base: Base,
    rounds: Sequence[int] | None,
    device: str,
) -> Averages:
    """Values per client and person, over rounds and (but for a slope) of each round."""
    values = _by_person(view, candidates, users, base, rounds, device)
    return _slopes(values) if base == "loss_slope" else average(values)


def _by_person(
    view: TraceView,
    candidates: Records,
    users: NDArray[np.int64],
    base: Base,
    rounds: Sequence[int] | None,
    device: str,
) -> Iterator[RoundValues]:
    if base == "cosine":
        for found in alignments(view, candidates, rounds=rounds, device=device):
            yield found.round, found.clients, person_means(found.cosines(), users)[1]
        return
    for number, clients, loss in losses(view, candidates, rounds=rounds, device=device):
        yield number, clients, person_means(-loss, users)[1]


def _slopes(rounds: Iterator[RoundValues]) -> Averages:
    """Least-squares slope of each client's values over the rounds it took part in, per round."""
    series: dict[int, list[tuple[int, Values]]] = {}
    for number, clients, values in rounds:
        for client, row in zip(clients, values, strict=True):
            series.setdefault(client, []).append((number, row))
    if not series:
        raise no_signal()
    long = {client: rows for client, rows in series.items() if len(rows) > 1}
    if not long:
        raise InputError(
            "base",
            "loss_slope",
            "no client took part in two of these rounds, and a slope needs two",
            "Record more rounds, or use base = 'loss_series'.",
        )
    clients = tuple(sorted(long))
    return Averages(clients, np.stack([_slope(long[client]) for client in clients]), {})


def _slope(rows: list[tuple[int, Values]]) -> Values:
    when = np.array([number for number, _ in rows], dtype=np.float64)
    when -= when.mean()
    slope: Values = when @ np.stack([row for _, row in rows]) / np.square(when).sum()
    return slope


def _run(given: AttackInput) -> MembershipScores:
    """The person's score for each of the person's records: the scorer counts persons."""
    candidates, users, settings = require_candidates(given), given.users, given.settings
    if users is None:
        raise InputError(
            "users",
            None,
            "this game is about records and does not say whose they are",
            "Play a game about persons: game.unit = 'user', with data that says whose each record "
            "is (such as data.name = 'personas').",
        )
    found = _measure(given.view, candidates, users, settings.base, settings.rounds, given.device)
    _, first, place = np.unique(users, return_index=True, return_inverse=True)
    asked = None if given.asked is None else given.asked[first]
    return MembershipScores(
        answer(found.clients, found.means, asked)[place],
        notes_on(given.view, found.clients),
        {
            number: answer(clients, values, asked)[place]
            for number, (clients, values) in found.per_round.items()
        },
    )


ATTACK = AttackSpec(
    name="user_membership",
    kind="membership",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://arxiv.org/abs/2206.03317",
    summary="Models fit fresh records of a person whose other records they were trained on",
    settings=UserMembershipSettings,
)

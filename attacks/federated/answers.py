"""From values per round and client to one score per candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.rounds import SUM, Source, Where
from fl_audit.attack_spec import AttackInput, AttackSettings, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView

Values = NDArray[np.float64]
RoundValues = tuple[int, tuple[int, ...], Values]
"""(round, clients, values of shape (m, n)); higher = more likely a member of that client."""


class RoundSettings(AttackSettings):
    """Which rounds to use."""

    rounds: list[int] | None = None
    """Server rounds, from 1; all that were recorded by default."""


class LayerSettings(RoundSettings):
    """Which rounds to use, and which parameters to compare."""

    layers: list[str] | None = None
    """Parameter names, as in the model's state; all by default."""


@dataclass(frozen=True, slots=True, eq=False)
class Averages:
    """Means over rounds for each client, and what each round alone says.

    Attributes:
        clients: Ascending.
        means: Mean over the rounds that the client took part in, shape (m, n).
        per_round: Round: (clients, values (m, n)).
    """

    clients: tuple[int, ...]
    means: Values
    per_round: dict[int, tuple[tuple[int, ...], Values]]


def average(rounds: Iterable[RoundValues]) -> Averages:
    """Average each client's values over the rounds it took part in.

    Raises:
        InputError: If there is no value at all ("no signal").
    """
    totals: dict[int, Values] = {}
    counts: dict[int, int] = {}
    per_round = {}
    for number, clients, values in rounds:
        per_round[number] = (clients, values)
        for client, row in zip(clients, values, strict=True):
            totals[client] = totals.get(client, 0) + row
            counts[client] = counts.get(client, 0) + 1
    if not totals:
        raise no_signal()
    clients = tuple(sorted(totals))
    return Averages(clients, np.stack([totals[c] / counts[c] for c in clients]), per_round)


def no_signal() -> InputError:
    """What an attack says that found no update to score by: never an AUC of 0.5 by ties."""
    return InputError(
        "client updates",
        "none",
        "no client sent a usable, non-zero update: there is no signal to score",
        "Check the trace: the clients failed, sent NaN, or returned the model unchanged; or the "
        "recording policy kept none of these rounds.",
    )


def answer(clients: tuple[int, ...], values: Values, asked: NDArray[np.int64] | None) -> Values:
    """One score per candidate from one per client and candidate.

    Args:
        clients: Shape (m,); (SUM,) if there is one value for all.
        values: Shape (m, n).
        asked: Client in question for each candidate, shape (n,), or None: any client.

    Returns:
        Shape (n,): the asked client's value; without a question the largest, because any client
        may be the one that holds the record. A candidate that is asked about a client which sent
        nothing has the median of the others: nothing speaks for or against it.
    """
    if asked is None or clients == (SUM,):
        best: Values = values.max(axis=0)
        return best
    if asked.shape != values.shape[1:]:
        raise InputError(
            "asked",
            asked.shape,
            f"needs one client per candidate, shape {values.shape[1:]}",
            "Give a client for each candidate, or None to ask about any client.",
        )
    place = {client: row for row, client in enumerate(clients)}
    rows = np.array([place.get(int(client), -1) for client in asked])
    found: Values = values[rows, np.arange(len(rows))]
    seen = rows >= 0
    found[~seen] = np.median(found[seen]) if seen.any() else 0.0
    return found


def scores_of(
    averages: Averages, asked: NDArray[np.int64] | None, view: TraceView
) -> MembershipScores:
    """Scores over all rounds and of each round, with notes on what could not be used."""
    return MembershipScores(
        answer(averages.clients, averages.means, asked),
        notes_on(view, averages.clients),
        {
            number: answer(clients, values, asked)
            for number, (clients, values) in averages.per_round.items()
        },
    )


def notes_on(view: TraceView, clients: tuple[int, ...]) -> tuple[str, ...]:
    """Replies that no attack can use; for sums, how many clients are behind each."""
    if clients != (SUM,):
        return tuple(view.unusable)
    sizes = [view.honest_set(number) for number in view.rounds]
    low, high = min(sizes), max(sizes)
    many = f"{low} to {high} clients" if low < high else f"{low} client{'s' if low != 1 else ''}"
    caveat = view.sum_caveat
    return (f"Sums over an honest set of {many}.", *([] if caveat is None else [caveat]))


def where(given: AttackInput, source: Source) -> Where:
    """What an attack's settings say of layers and rounds, as keywords."""
    layers: list[str] | None = getattr(given.settings, "layers", None)
    return Where(layers=layers, rounds=given.settings.rounds, source=source, device=given.device)


def both_seats(
    name: str,
    values: Callable[[AttackInput, Source], Iterable[RoundValues]],
    *,
    reference: str,
    summary: str,
    local_summary: str,
    settings: type[AttackSettings],
    knows: Knowledge = Knowledge.LABELS,
) -> tuple[AttackSpec, AttackSpec]:
    """An attack from the server's seat, and its `local_` variant from a client's.

    The server sees each client's update. A client (or a server behind secure aggregation) sees
    only the global model of each round, and so what the updates come to together.
    """

    def run(given: AttackInput) -> MembershipScores:
        require_candidates(given)
        return scores_of(average(values(given, "clients")), given.asked, given.view)

    def run_local(given: AttackInput) -> MembershipScores:
        require_candidates(given)
        return scores_of(average(values(given, "sum")), None, given.view)

    server = AttackSpec(
        name=name,
        kind="membership",
        requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
        knows=knows,
        run=run,
        reference=reference,
        summary=summary,
        settings=settings,
    )
    local = AttackSpec(
        name=f"local_{name}",
        kind="membership",
        requires=Observation.AGGREGATE | Observation.GLOBAL_MODEL,
        knows=knows,
        run=run_local,
        reference=reference,
        summary=local_summary,
        settings=settings,
    )
    return server, local

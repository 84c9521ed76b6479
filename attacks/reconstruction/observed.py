"""Updates to invert: each client's, or from a client's seat what all others' come to.

A client sees two global models. Their difference is the mean of the round's updates; less the
client's own, it is the mean of the others'. It inverts like one update of a client that holds
everybody's data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.federated.rounds import SUM, Source, chosen_rounds, round_updates
from fl_audit.attack_spec import AttackInput, AttackSettings, AttackSpec, Reconstructions, Tried
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining
from fl_audit.threat_model import NOTHING_KNOWN, Knowledge, Observation
from fl_audit.trace import TraceView

Values = NDArray[np.float64]


class UpdateSettings(AttackSettings):
    """Which updates to invert."""

    rounds: list[int] | None = None
    """Server rounds, from 1; all that were recorded by default."""
    clients: list[int] | None = None
    """Clients whose updates to invert; all by default. Sums have no single client."""
    most_updates: int | None = Field(default=None, ge=1)
    """Stop after so many updates, in the order of rounds and clients; all by default."""
    seat: int | None = None
    """For `local_` attacks: look from this client's seat, and subtract its own update. By default
    the adversary's own seat: a server behind secure aggregation sees the sum of all."""


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """One update, and what the adversary knows of how it came about.

    Attributes:
        round: Server round.
        client: Who sent it; -1 for a sum.
        behind: Clients whose updates are in it.
        model: What they received, all arrays by name (buffers among them).
        update: Parameters and buffers after minus before, float64.
        local: How they trained, or None if that is not known, or not the same for all.
        num_examples: How many examples they trained on in all, or None if that is not known.
    """

    round: int
    client: int
    behind: tuple[int, ...]
    model: Mapping[str, NDArray[np.generic]]
    update: Mapping[str, Values]
    local: LocalTraining | None
    num_examples: float | None

    @property
    def tried(self) -> Tried:
        """Its place in `Reconstructions.tried`."""
        return self.round, self.client, self.behind


def observed(given: AttackInput, source: Source) -> Iterator[Observed]:
    """Updates to invert, by round and client, as the settings choose them.

    Raises:
        ObservationError: If the view does not grant them.
        InputError: If the settings name a round or client that is not there.
    """
    settings: UpdateSettings = given.settings
    view = seated(given.view, source, settings)
    chosen = settings.clients
    if chosen is not None and source == "sum":
        raise InputError(
            "clients",
            chosen,
            "a sum is of all clients together",
            "Leave it out, or use the attack without `local_`.",
        )
    if chosen is not None:
        known = {client for number in view.rounds for client in view.clients(number)}
        for client in chosen:
            if client not in known:
                raise InputError(
                    "clients",
                    client,
                    "this client sent no usable update",
                    f"These did: {sorted(known)}.",
                )
    done = 0
    for number in chosen_rounds(view, settings.rounds):
        for model, updates in round_updates(view, number, source):
            for client, update in updates.items():
                if chosen is not None and client not in chosen:
                    continue
                if settings.most_updates is not None and done >= settings.most_updates:
                    return
                done += 1
                behind = view.summed(number) if client == SUM else (client,)
                yield Observed(
                    number,
                    client,
                    behind,
                    model,
                    update,
                    _local_training(view, behind),
                    _num_examples(view, number, behind),
                )


def seated(view: TraceView, source: Source, settings: UpdateSettings) -> TraceView:
    """The view from the seat that the settings name.

    Raises:
        InputError: If a seat is named for an attack on single clients' updates.
    """
    if settings.seat is None:
        return view
    if source != "sum":
        raise InputError(
            "seat",
            settings.seat,
            "only `local_` attacks look from a client's seat",
            "Leave it out, or put `local_` before the attack's name.",
        )
    return view.from_seat(settings.seat)


def seat_notes(view: TraceView, source: Source, settings: UpdateSettings) -> tuple[str, ...]:
    """What a reader must know about where these updates were seen."""
    if source == "clients":
        return tuple(view.unusable)
    seat = seated(view, source, settings)
    own = f"client {settings.seat}'s seat" if settings.seat is not None else "sums"
    sizes = [seat.honest_set(number) for number in seat.rounds]
    caveat = seat.sum_caveat
    note = f"From {own}: {min(sizes)} to {max(sizes)} clients in each sum."
    threat = view.threat_model
    if settings.seat is None and threat.who == "client" and not threat.controls:
        note += (
            " The adversary's own update is among them: name its client by `seat`, or in "
            "threat_model.controls, to subtract it."
        )
    return (note, *([] if caveat is None else [caveat]))


def both_seats(
    name: str,
    run: Callable[[AttackInput, Source], Reconstructions],
    *,
    reference: str,
    summary: str,
    settings: type[UpdateSettings] = UpdateSettings,
    knows: Knowledge = NOTHING_KNOWN,
) -> tuple[AttackSpec, AttackSpec]:
    """A reconstruction attack on each client's update, and its `local_` variant on sums."""

    def spec(spec_name: str, source: Source, sees: Observation, text: str) -> AttackSpec:
        return AttackSpec(
            name=spec_name,
            kind="reconstruction",
            requires=sees | Observation.GLOBAL_MODEL,
            knows=knows,
            run=lambda given: run(given, source),
            reference=reference,
            summary=text,
            settings=settings,
        )

    server = spec(name, "clients", Observation.CLIENT_UPDATES, summary)
    seen_from = f"{summary}: from a client's seat, on the sum of the others' updates"
    return server, spec(f"local_{name}", "sum", Observation.AGGREGATE, seen_from)


def _local_training(view: TraceView, clients: tuple[int, ...]) -> LocalTraining | None:
    if Knowledge.LOCAL_TRAINING not in view.threat_model.knows:
        return None
    found = []
    for client in clients:
        try:
            found.append(view.local_training(client))
        except InputError:  # the run did not record it
            return None
    return found[0] if found and all(local == found[0] for local in found) else None


def _num_examples(view: TraceView, server_round: int, clients: tuple[int, ...]) -> float | None:
    if Knowledge.EXAMPLE_COUNTS not in view.threat_model.knows:
        return None
    try:
        return sum(view.num_examples(server_round, client) for client in clients)
    except InputError:  # a client claimed no usable number
        return None

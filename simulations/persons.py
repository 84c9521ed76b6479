"""Populations where the lot decides about persons: whose records a client trains on, and whose not.

A person's records stay together: some are trained on, by one client, and some (`fresh`) by nobody.
The game asks about the fresh ones of persons that were drawn by lot, so that an attack has to
recognise the person and not the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.game import NATURAL, GameRules
from simulations.drawn import Drawn, Rows, candidate_holders, one_hot
from simulations.scenario import Scenario


@dataclass(frozen=True, slots=True, eq=False)
class Dealt:
    """Rows of the data set: each client's, those to test on, the adversary's own, and the game."""

    clients: list[Rows]
    test: Rows
    auxiliary: Rows
    drawn: Drawn


@dataclass(frozen=True, slots=True, eq=False)
class _Person:
    train: Rows
    fresh: Rows


def deal_persons(
    scenario: Scenario, users: NDArray[np.int64] | None, rng: np.random.Generator
) -> Dealt:
    """Draw who trains, who is asked about, and who is left for tests.

    Args:
        users: Person of each record of the data set, or None if it does not say.

    Raises:
        InputError: If there are no persons, too few of them, or a setting does not fit.
    """
    if users is None:
        raise InputError(
            "game.unit",
            "user",
            f"data {scenario.data.name!r} does not say whose each record is",
            'Use data that does (data.user_column, a function that returns users, or "personas"), '
            'or game.unit = "record".',
        )
    game, federation = scenario.game, scenario.federation
    rows_of = {int(p): rng.permutation(np.flatnonzero(users == p)) for p in np.unique(users)}
    order = [int(p) for p in rng.permutation(np.unique(users))]
    few = [p for p in order if len(rows_of[p]) <= game.fresh_per_user]
    queue = [rows_of[p] for p in [*few, *(p for p in order if p not in set(few))]]
    test = _deal(queue, scenario.data.test, "data.test")
    auxiliary = _deal(queue, game.auxiliary, "game.auxiliary")
    fresh = game.fresh_per_user
    persons = [_Person(rows[fresh:], rows[:fresh]) for rows in queue if len(rows) > fresh]
    clients = _deal_clients(scenario, persons)
    drawn = _draw(scenario, clients, persons, rng)
    rows = [np.concatenate([p.train for p in held]) for held in clients]
    assert len(rows) == federation.clients
    return Dealt(rows, test, auxiliary, drawn)


def _deal(queue: list[Rows], count: int, name: str) -> Rows:
    """Records of whole persons from the front of the queue; of the last, what is needed."""
    taken: list[Rows] = []
    while sum(map(len, taken)) < count:
        if not queue:
            raise InputError(
                name,
                count,
                "the data set has fewer records than that",
                "Ask for fewer test or auxiliary records, or use a larger data set.",
            )
        taken.append(queue.pop(0))
    return np.concatenate([*taken, np.empty(0, dtype=np.int64)])[:count]


def _deal_clients(scenario: Scenario, persons: list[_Person]) -> list[list[_Person]]:
    """Persons that each client holds, taken from the front of `persons`."""
    clients, per_client = scenario.federation.clients, scenario.data.examples_per_client
    held: list[list[_Person]] = [[] for _ in range(clients)]
    if per_client == "all":  # that the game leaves: a member needs others beside it, and a null
        game, num = scenario.game, len(persons)
        others = game.non_members_per_member
        trained = max(num // (2 * (1 + others)), num - game.members * (1 + 2 * others))
        for number in range(trained):
            held[number % clients].append(persons.pop(0))
    else:
        for mine in held:
            while persons and _size([*mine, persons[0]]) <= per_client:
                mine.append(persons.pop(0))
    if not all(held):
        raise InputError(
            "data.examples_per_client",
            per_client,
            f"some of the {clients} clients get no person: each has more records than that, or "
            "too few persons are left",
            "Raise data.examples_per_client, or use fewer clients, test or auxiliary records.",
        )
    return held


def _size(persons: Sequence[_Person]) -> int:
    return sum(len(person.train) for person in persons)


def _draw(
    scenario: Scenario,
    clients: list[list[_Person]],
    rest: list[_Person],
    rng: np.random.Generator,
) -> Drawn:
    """Groups of persons and lots; `clients` is changed where the lot falls on another person."""
    game = scenario.game
    others, fresh = game.non_members_per_member, game.fresh_per_user
    width = 1 + others
    holders = candidate_holders(scenario)
    slots = [(client, place) for client in holders for place in range(len(clients[client]))]
    chosen = [slots[i] for i in rng.permutation(len(slots))[: game.members]]
    groups: list[list[_Person]] = []
    lots: list[int] = []
    holder: list[int] = []
    for client, place in chosen:
        if len(rest) < others:
            break
        group = [clients[client][place], *(rest.pop(0) for _ in range(others))]
        lots.append(int(rng.integers(width)))
        clients[client][place] = group[lots[-1]]
        groups.append(group)
        holder.append(client)
    if not groups:
        raise InputError(
            "game.non_members_per_member",
            others,
            f"only {len(rest)} persons are left to be non-members",
            "Lower data.examples_per_client, data.test or game.non_members_per_member.",
        )
    null = [
        [rest.pop(0) for _ in range(width)] for _ in range(min(len(groups), len(rest) // width))
    ]
    null_lots = [int(rng.integers(width)) for _ in null]
    notes = []
    if len(groups) < len(chosen):
        notes.append(f"{len(chosen)} groups were asked for; there are persons for {len(groups)}.")
    if len(null) < len(groups):
        notes.append(f"The null control has {len(null)} groups instead of {len(groups)}.")
    candidates, null_rows = _ask_about(groups, fresh), _ask_about(null, fresh)
    return Drawn(
        rules=GameRules(
            decided_by="a fair coin for each pair of persons"
            if others == 1
            else f"a fair lot among {width} persons",
            non_members_per_member=others,
            groups=len(groups),
            null_groups=len(null),
            unit="user",
            fresh_per_user=fresh,
            notes=notes,
        ),
        candidates=candidates,
        is_member=_for_each(one_hot(lots, width), width, fresh),
        client=np.repeat(np.asarray(holder, dtype=np.int64), width * fresh),
        kinds=np.full(len(candidates), NATURAL),
        null=null_rows,
        null_client=np.repeat(np.asarray(holder[: len(null)], dtype=np.int64), width * fresh),
        null_is_member=_for_each(one_hot(null_lots, width), width, fresh),
        null_kinds=np.full(len(null_rows), NATURAL),
    )


def _ask_about(groups: list[list[_Person]], fresh: int) -> Rows:
    """Fresh records: of a group, the first of each person, then the second of each, ...

    So `width` records in a row always hold one of each person, as in a game about records.
    """
    rows = [person.fresh[turn] for group in groups for turn in range(fresh) for person in group]
    return np.asarray(rows, dtype=np.int64)


def _for_each(chosen: NDArray[np.bool_], width: int, fresh: int) -> NDArray[np.bool_]:
    """Each group's lots, once for each of its persons' fresh records, in that order."""
    repeated: NDArray[np.bool_] = np.tile(chosen.reshape(-1, 1, width), (1, fresh, 1)).reshape(-1)
    return repeated

"""From a scenario to data: each client's records, the game's candidates, and the truth.

Every candidate belongs to a *group* of 1 + `non_members_per_member` records of one class. A lot
decides which of the group a client trains on; the others are never trained on. So members and
non-members have the same classes in the same numbers, however uneven the partition is, and an
attack that merely guesses the class of a client's data gains nothing. Null groups are drawn the
same way from records that nobody trains on at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.game import KINDS, NATURAL, GameRules, GameTruth, MembershipGame
from fl_audit.records import Records
from simulations.canaries import MISLABELLED, OUT_OF_DISTRIBUTION, plant
from simulations.data import Dataset, load_dataset
from simulations.drawn import Drawn, Rows, candidate_holders, one_hot
from simulations.partitions import held_classes, partition
from simulations.persons import Dealt, deal_persons
from simulations.scenario import Game, Scenario


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """Everything that a simulated federation is made of.

    Attributes:
        clients: What each client trains on, by partition id.
        test: Records to measure utility on; nobody trains on them.
        game: What attackers are shown.
        truth: What only the scorer may open.
        client_users: In games about persons, whose each of a client's records is.
    """

    dataset: Dataset
    clients: list[Records]
    test: Records
    game: MembershipGame
    truth: GameTruth
    client_users: list[NDArray[np.int64]] | None = None


def build_population(scenario: Scenario) -> Population:
    """Draw the population of a scenario. Same scenario, same population.

    Raises:
        InputError: If the data set is too small for what the scenario asks.
    """
    dataset = load_dataset(scenario.data)
    if scenario.data.random_labels:
        dataset = _with_random_labels(dataset, scenario.seeds("labels"))
    rng = scenario.seeds("population")
    if scenario.game.unit == "user":
        return _populate(scenario, dataset, deal_persons(scenario, dataset.users, rng))
    rest = _Deck(rng.permutation(len(dataset.records)), dataset.records.labels)
    test = rest.deal(scenario.data.test, "data.test")
    auxiliary = rest.deal(scenario.game.auxiliary, "game.auxiliary")
    held = held_classes(rest.labels, scenario.federation.clients, scenario.partition, rng=rng)
    anchors = _deal_training(scenario, rest, held)
    labels = dataset.records.labels
    parts = partition(labels[anchors], scenario.federation.clients, scenario.partition, rng=rng)
    clients = [anchors[part] for part in parts]
    drawn = _draw_candidates(scenario, clients, labels, rest, rng)
    notes = drawn.rules.notes
    if held is not None:
        notes = [f"Clients hold {len(held)} of {dataset.num_classes} classes, by lot.", *notes]
    drawn = replace(drawn, rules=drawn.rules.model_copy(update={"notes": notes}))
    return _populate(scenario, dataset, Dealt(clients, test, auxiliary, drawn))


def _populate(scenario: Scenario, dataset: Dataset, dealt: Dealt) -> Population:
    """The population of these rows, with canaries planted."""
    drawn, users, is_kind = dealt.drawn, None, scenario.game.num_canaries > 0
    if scenario.game.unit == "user":
        users = dataset.users
    records = plant(
        dataset.records,
        np.concatenate([drawn.candidates, drawn.null]),
        np.concatenate([drawn.kinds, drawn.null_kinds]),
        width=drawn.rules.non_members_per_member + 1,
        num_classes=dataset.num_classes,
        rng=scenario.seeds("canaries"),
    )
    asks_client = scenario.game.question == "client"
    game = MembershipGame(
        rules=drawn.rules,
        candidates=records.take(drawn.candidates),
        null=records.take(drawn.null),
        auxiliary=records.take(dealt.auxiliary),
        num_classes=dataset.num_classes,
        asked=drawn.client if asks_client else None,
        null_asked=drawn.null_client if asks_client else None,
        kinds=drawn.kinds if is_kind else None,
        null_kinds=drawn.null_kinds if is_kind else None,
        users=None if users is None else users[drawn.candidates],
        null_users=None if users is None else users[drawn.null],
    )
    return Population(
        dataset,
        [records.take(rows) for rows in dealt.clients],
        records.take(dealt.test),
        game,
        GameTruth(drawn.is_member, drawn.client, drawn.null_is_member),
        None if users is None else [users[rows] for rows in dealt.clients],
    )


class _Deck:
    """Shuffled rows, dealt from the top, by count or by class."""

    def __init__(self, rows: Rows, labels: Rows) -> None:
        self._rows, self._labels = rows, labels

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def labels(self) -> Rows:
        """Classes of the rows that are left, in order."""
        return self._labels[self._rows]

    def deal(self, count: int, name: str) -> Rows:
        """The next `count` rows."""
        if count > len(self._rows):
            raise InputError(
                name,
                count,
                f"only {len(self._rows)} records are left to deal",
                "Ask for fewer test, auxiliary or training records, or use a larger data set.",
            )
        return self.take(np.arange(count))

    def deal_of_class(self, label: int, count: int) -> Rows | None:
        """The next `count` rows of one class, or None (and nothing dealt) if there are fewer."""
        places = np.flatnonzero(self.labels == label)[:count]
        return self.take(places) if len(places) == count else None

    def take(self, places: Rows) -> Rows:
        """The rows at these places, counted from the top."""
        dealt = self._rows[places]
        self._rows = np.delete(self._rows, places)
        return dealt


def _draw_candidates(
    scenario: Scenario, clients: list[Rows], labels: Rows, rest: _Deck, rng: np.random.Generator
) -> Drawn:
    """Draw groups and lots; `clients` is changed where the lot falls on another record."""
    others = scenario.game.non_members_per_member
    canaries, wanted = scenario.game.canaries, scenario.game.num_canaries
    holders = candidate_holders(scenario)
    slots = [(client, place) for client in holders for place in range(len(clients[client]))]
    chosen = [slots[i] for i in rng.permutation(len(slots))[: wanted + scenario.game.members]]
    groups: list[Rows] = []
    lots: list[int] = []
    holder: list[int] = []
    for client, place in chosen:
        anchor = clients[client][place]
        partners = rest.deal_of_class(int(labels[anchor]), others)
        if partners is None:
            continue  # this class is exhausted: the record stays in training, outside the game
        group = np.concatenate([[anchor], partners])
        lot = int(rng.integers(len(group)))
        clients[client][place] = group[lot]
        groups.append(group)
        lots.append(lot)
        holder.append(client)
    if not groups:
        raise InputError(
            "game.non_members_per_member",
            others,
            f"no class has {others} records left to be non-members",
            "Lower data.examples_per_client, data.test or game.non_members_per_member.",
        )
    if wanted >= len(groups):
        raise InputError(
            "game.canaries",
            wanted,
            f"clients hold {len(slots)} records, which gives {len(groups)} groups in all: none is "
            "left to be natural",
            "Ask for fewer canaries, or raise data.examples_per_client.",
        )
    kinds = np.full(len(groups), NATURAL)  # slots are in random order, so this is by lot
    kinds[:wanted] = OUT_OF_DISTRIBUTION
    kinds[: canaries.mislabelled] = MISLABELLED
    null_groups, beside = _draw_null(groups, labels, rest, others)
    null_lots = [int(rng.integers(others + 1)) for _ in null_groups]
    notes = []
    if len(groups) < len(chosen):
        notes.append(
            f"{len(chosen)} groups were asked for; the data set has enough records for "
            f"{len(groups)}."
        )
    if len(null_groups) < len(groups):
        notes.append(f"The null control has {len(null_groups)} groups instead of {len(groups)}.")
    if wanted:
        counts = [f"{int((kinds == k).sum())} {name}" for k, name in enumerate(KINDS)]
        notes.append(f"Groups by kind: {', '.join(counts)}. Figures are of natural ones only.")
    width = others + 1
    return Drawn(
        rules=GameRules(
            decided_by="a fair coin for each pair of records of one class"
            if others == 1
            else f"a fair lot among {width} records of one class",
            non_members_per_member=others,
            groups=len(groups),
            null_groups=len(null_groups),
            notes=notes,
        ),
        candidates=np.concatenate(groups),
        is_member=one_hot(lots, width),
        client=np.repeat(np.asarray(holder, dtype=np.int64), width),
        kinds=np.repeat(kinds, width),
        null=np.concatenate([*null_groups, np.empty(0, dtype=np.int64)]),
        null_client=np.repeat(np.asarray(holder, dtype=np.int64)[beside], width),
        null_is_member=one_hot(null_lots, width),
        null_kinds=np.repeat(kinds[beside], width),
    )


def _draw_null(
    groups: list[Rows], labels: Rows, rest: _Deck, others: int
) -> tuple[list[Rows], Rows]:
    """Groups of the same classes as the game's, as many as the data set still has, and the place
    of the game's group that each is the control of."""
    null, places = [], []
    for place, group in enumerate(groups):
        drawn = rest.deal_of_class(int(labels[group[0]]), others + 1)
        if drawn is not None:
            null.append(drawn)
            places.append(place)
    return null, np.asarray(places, dtype=np.int64)


def _deal_training(scenario: Scenario, rest: _Deck, held: Rows | None) -> Rows:
    """What clients train on, of the classes that they hold (None: of all)."""
    labels, clients = rest.labels, scenario.federation.clients
    places = np.arange(len(rest)) if held is None else np.flatnonzero(np.isin(labels, held))
    per_client = scenario.data.examples_per_client
    if per_client == "all":
        return rest.take(places[_beside_the_game(labels[places], scenario.game)])
    if clients * per_client > len(places):
        raise InputError(
            "federation.clients * data.examples_per_client",
            clients * per_client,
            f"the data set has {len(places)} records left after data.test and game.auxiliary"
            + ("" if held is None else f", of the {len(held)} classes that clients hold"),
            "Use fewer clients or fewer examples per client"
            + ("." if held is None else ", or raise partition.classes_per_client."),
        )
    return rest.take(places[: clients * per_client])


def _beside_the_game(labels: Rows, game: Game) -> NDArray[np.bool_]:
    """Which records may be trained on, so that enough of each class are left for the game.

    A member needs others of its class beside it, and a null group. Members are drawn from what is
    trained on: in a class there may be some more of them than its share (four standard
    deviations), and as many as there are altogether if only some clients hold them. At least the
    share of a class is trained on that would be if each of its records were a member.
    """
    others = game.non_members_per_member
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        members = float(game.members + game.num_canaries)
        if game.clients is None:
            expected = members * count / len(labels)
            members = min(members, np.ceil(expected + 4 * np.sqrt(expected)))
        trained = max(1, count // (2 * (1 + others)), count - int(members) * (1 + 2 * others))
        chosen[np.flatnonzero(labels == label)[:trained]] = True
    return chosen


def _with_random_labels(dataset: Dataset, rng: np.random.Generator) -> Dataset:
    records = dataset.records
    labels = rng.integers(dataset.num_classes, size=len(records))
    return replace(dataset, records=Records(records.ids, records.inputs, labels))

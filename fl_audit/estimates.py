"""What attacks of kind "estimate" give back: guesses about clients and records, not membership."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Clients = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SourceScores:
    """Which client holds each candidate, given that one of them does.

    Attributes:
        clients: Clients that can be guessed: those that were seen. Shape (m,), ascending.
        scores: Higher = more likely this client holds it, shape (m, n).
        per_round: Round: (clients, scores (m, n)) of the clients that answered in it.
    """

    clients: Clients
    scores: Values
    notes: tuple[str, ...] = ()
    per_round: Mapping[int, tuple[Clients, Values]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class LabelShare:
    """The classes behind one update of one round.

    Attributes:
        round: Server round.
        clients: Whose data: one client, or all whose updates are in a sum.
        present: Whether each class occurs, shape (classes,).
        shares: Share of each class, non-negative, sum 1, shape (classes,); None if only presence
            was inferred.
    """

    round: int
    clients: Clients
    present: NDArray[np.bool_]
    shares: Values | None


@dataclass(frozen=True, slots=True, eq=False)
class LabelShares:
    """Class shares of every update that an estimate could be made for."""

    estimates: tuple[LabelShare, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class PropertyScores:
    """How much each update looks like one made with data that has a property.

    Attributes:
        property: "class:3" or "module:function".
        scores: (round, client): log-odds, nats; higher = more likely the data has it.
        null: The same from classifiers that learnt shuffled labels, one table each.
        min_share: A client has the property if more than this share of its records has.
    """

    property: str
    scores: Mapping[tuple[int, int], float]
    null: tuple[Mapping[tuple[int, int], float], ...]
    min_share: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class AttributeGuesses:
    """One unknown input value of each candidate, as the number of a bin.

    Attributes:
        attribute: Place of the value in the flattened input.
        edges: Inner edges of v bins, ascending, shape (v - 1,): bin b holds values in
            [edges[b - 1], edges[b]).
        scores: Evidence of the updates for each bin, shape (n, v); higher = more likely.
        update: Guess from the updates alone, shape (n,).
        imputed: Guess of an imputer that saw no model and no update, shape (n,).
        combined: Guess from both, shape (n,).
    """

    attribute: int
    edges: Values
    scores: Values
    update: NDArray[np.int64]
    imputed: NDArray[np.int64]
    combined: NDArray[np.int64]
    notes: tuple[str, ...] = ()


EstimateOutput = SourceScores | LabelShares | PropertyScores | AttributeGuesses

"""Attacks that take what their seat shows: each client's update, or else only the sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from attacks.federated.answers import answer
from attacks.federated.rounds import Source
from fl_audit.threat_model import Observation
from fl_audit.trace import TraceView

Values = NDArray[np.float64]


def nearest_source(view: TraceView) -> Source:
    """Each client's update where the view grants it, else the sum of the honest set's."""
    return "sum" if view.threat_model.missing(Observation.CLIENT_UPDATES) else "clients"


@dataclass(slots=True, eq=False)
class Best:
    """Largest score of each client and record over the rounds: one round suffices as evidence.

    Attributes:
        clients: Client: scores, shape (n,).
        rounds: Round: the same of that round alone.
    """

    clients: dict[int, Values] = field(default_factory=dict)
    rounds: dict[int, dict[int, Values]] = field(default_factory=dict)

    def add(self, server_round: int, client: int, values: Values) -> None:
        """Take in what one update says of each record, shape (n,)."""
        before = self.clients.get(client, values)
        self.clients[client] = np.maximum(before, values)
        self.rounds.setdefault(server_round, {})[client] = values

    def scores(self, asked: NDArray[np.int64] | None) -> Values:
        """One score a record, of the client it is asked about; shape (n,)."""
        return _answer(self.clients, asked)

    def per_round(self, asked: NDArray[np.int64] | None) -> dict[int, Values]:
        """The same from each round alone."""
        return {number: _answer(values, asked) for number, values in self.rounds.items()}


def _answer(values: Mapping[int, Values], asked: NDArray[np.int64] | None) -> Values:
    clients = tuple(sorted(values))
    return answer(clients, np.stack([values[client] for client in clients]), asked)

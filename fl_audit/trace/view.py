"""A view: what the threat model grants of a trace, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError, TraceError
from fl_audit.local_training import LocalTraining, LocalTrainings
from fl_audit.threat_model import NOTHING_SEEN, Knowledge, Observation, ThreatModel
from fl_audit.trace.index import RoundIndex
from fl_audit.trace.reader import LazyArrays, Trace
from fl_audit.trace.updates import Update, WeightedSum
from fl_audit.trace.usable import LEFT_OUT, MODEL_LEFT_OUT, usable_clients

ModelBuilder = Callable[[], Any]
"""Builds the (untrained) torch module that the arrays of the trace belong to."""


class TraceView:
    """What one adversary sees of a trace.

    Every accessor first checks that the threat model grants it, and raises `ObservationError`
    naming the missing flag otherwise. Replies that cannot be used (errors, other shapes than the
    model's, NaN) are left out of `clients` and listed in `unusable`.

    Args:
        trace: The recorded trace.
        threat_model: The adversary.
        model: Builds the architecture. An adversary that sees weights knows what they belong to.
        local_training: How the clients train, if it was recorded.
        up_to: Last round to show; all rounds by default.
        last_round: The round that made the final model, if the run is done: no older model is
            given in its place.
        averages: Whether the strategy's step is the weighted mean of the updates, as FedAvg's is.
    """

    def __init__(
        self,
        trace: Trace,
        threat_model: ThreatModel,
        *,
        model: ModelBuilder | None = None,
        local_training: LocalTrainings | None = None,
        up_to: int | None = None,
        last_round: int | None = None,
        averages: bool = True,
    ) -> None:
        self._trace = trace
        self._averages = averages
        self._last_round = last_round
        self._local_training = local_training
        self._model = model
        self.threat_model = threat_model
        self._rounds = {
            number: trace.round(number)
            for number in trace.rounds
            if up_to is None or number <= up_to
        }
        if not self._rounds:
            raise TraceError(
                "trace",
                str(trace.directory.name),
                "no round was recorded",
                "Run at least one round before attacking it.",
            )
        self._usable = {n: usable_clients(index) for n, index in self._rounds.items()}

    @classmethod
    def of_nothing(cls, threat_model: ThreatModel) -> TraceView:
        """The view of an adversary of a released model: there is no trace to see."""
        view = cls.__new__(cls)
        view._trace, view._local_training, view._model = Trace(Path(), []), None, None
        view._rounds, view._usable, view._last_round = {}, {}, None
        view._averages = True
        view.threat_model = threat_model
        return view

    def from_seat(self, client: int) -> TraceView:
        """What one client sees of the same rounds: global models, and its own updates.

        Whoever sees every client's update sees this too. Sums are then the difference of two
        global models less what this client added to it.

        Raises:
            InputError: If the adversary is not this client and does not see every client's update,
                or no such client ever replied.
        """
        threat = self.threat_model
        is_any_client = threat.who == "client" and not threat.controls
        if threat.missing(Observation.CLIENT_UPDATES) and not (
            is_any_client or client in threat.controls
        ):
            raise InputError(
                "seat",
                client,
                f"this adversary ({threat.who}) is not that client, and does not see what it sends",
                "Leave it out, or name the client in threat_model.controls.",
            )
        if not any(client in usable for usable in self._usable.values()):
            replied = sorted({c for usable in self._usable.values() for c in usable})
            raise InputError(
                "seat", client, "no such client replied", f"These clients did: {replied}."
            )
        seat = TraceView.__new__(TraceView)
        for name, value in vars(self).items():
            setattr(seat, name, value)
        seat.threat_model = ThreatModel(
            "client",
            sees=Observation.AGGREGATE | Observation.GLOBAL_MODEL,
            knows=self.threat_model.knows | Knowledge.EXAMPLE_COUNTS,
            controls=(client,),
        )
        return seat

    @property
    def rounds(self) -> tuple[int, ...]:
        """Numbers of the rounds whose model was recorded, ascending."""
        return tuple(
            number
            for number, index in self._rounds.items()
            if index.broadcast is not None and index.broadcast.is_stored
        )

    def clients(self, server_round: int) -> tuple[int, ...]:
        """Clients with a usable update in this round, ascending. Needs CLIENT_UPDATES."""
        self._require("clients", Observation.CLIENT_UPDATES)
        self._round(server_round)
        return tuple(c for c, why in self._usable[server_round].items() if why is None)

    @property
    def unusable(self) -> list[str]:
        """One line for each reply that no attack can use. Needs CLIENT_UPDATES.

        Replies that the recording policy left out are not listed: nobody claims to have seen them.
        """
        self._require("unusable", Observation.CLIENT_UPDATES)
        return [
            f"round {number}, client {client}: {why}"
            for number, clients in self._usable.items()
            for client, why in clients.items()
            if why not in (None, LEFT_OUT, MODEL_LEFT_OUT)
        ]

    def global_model(self, server_round: int) -> Mapping[str, NDArray[np.generic]]:
        """The global model before this round, which clients receive unless a malicious server
        sends them another. Needs GLOBAL_MODEL."""
        self._require("global_model", Observation.GLOBAL_MODEL)
        return self._arrays(server_round, "broadcast")

    def received(self, server_round: int, client: int) -> Mapping[str, NDArray[np.generic]]:
        """The model that this client received: a malicious server may send each its own.

        Needs GLOBAL_MODEL.
        """
        self._require("received", Observation.GLOBAL_MODEL)
        return self._received(server_round, client)

    def _received(self, server_round: int, client: int) -> Mapping[str, NDArray[np.generic]]:
        if self._round(server_round).sent_to(client) is None:
            return self._arrays(server_round, "broadcast")
        arrays = self._trace.received(server_round, client)
        if arrays is None:
            raise _not_recorded(f"the model that client {client} received in round {server_round}")
        return arrays

    def received_groups(
        self, server_round: int
    ) -> list[tuple[Mapping[str, NDArray[np.generic]], tuple[int, ...]]]:
        """Each model that was sent out, with the clients that received it and sent an update.

        One model for all, unless a malicious server sent some clients another: then each model
        once, in the order of its first client. Needs CLIENT_UPDATES and GLOBAL_MODEL.
        """
        groups: list[tuple[object, list[int]]] = []
        for client in self.clients(server_round):
            entry = self._round(server_round).sent_to(client)
            tensors = None if entry is None else entry.arrays.tensors
            same = next((clients for model, clients in groups if model == tensors), None)
            if same is None:
                groups.append((tensors, [client]))
            else:
                same.append(client)
        return [(self.received(server_round, group[0]), tuple(group)) for _, group in groups]

    def client_model(self, server_round: int, client: int) -> Mapping[str, NDArray[np.generic]]:
        """What a client replied in this round, as it arrived.

        Needs CLIENT_UPDATES, or a client of the adversary's own.
        """
        if client not in self.threat_model.controls:
            self._require("client_model", Observation.CLIENT_UPDATES)
        return self._arrays(server_round, client)

    def client_update(self, server_round: int, client: int) -> Mapping[str, NDArray[np.float64]]:
        """Client parameters minus those it received, float64, read one tensor at a time.

        Integer arrays (batch-norm counters) are left out. Needs GLOBAL_MODEL, and CLIENT_UPDATES
        or a client of the adversary's own.

        Raises:
            TraceError: If the reply is not usable.
        """
        before, after = self.received(server_round, client), self.client_model(server_round, client)
        why = self._usable[server_round].get(client, "it sent nothing")
        if why is not None:
            raise _not_usable(server_round, client, why)
        return Update(self._float_names(server_round), before, after)

    def sum_update(self, server_round: int) -> Mapping[str, NDArray[np.float64]] | None:
        """Mean update of the honest set in a round, weighted by examples.

        A server gets the sum that secure aggregation gives it, before its own step or noise. A
        client has the next global model minus this one, less what the adversary's own clients
        added to it: the same where the strategy averages, and otherwise what `sum_caveat` says.

        Returns:
            float64, read one tensor at a time; None if the round kept the old model, or nobody
            but the adversary answered. Needs AGGREGATE and GLOBAL_MODEL, and EXAMPLE_COUNTS if
            the adversary controls clients.
        """
        before, after = self.global_model(server_round), self.aggregate(server_round)
        names = self._float_names(server_round)
        own = [c for c in self.threat_model.controls if self._answers(server_round, c)]
        honest = self.summed(server_round)
        if after is None or not honest:
            return None
        if self._sees_the_sum(server_round):
            weights = self._weights(server_round, honest)
            parts = [(weights[c], self._update(server_round, c, names)) for c in honest]
            return WeightedSum(names, parts)
        whole: Mapping[str, NDArray[np.float64]] = Update(names, before, after)
        if not own:
            return whole
        for client in own:
            self.num_examples(server_round, client)  # grants, or says what is missing
        weights = self._weights(server_round, (*honest, *own))
        share = sum(weights[client] for client in honest)
        minus = [(-weights[c] / share, self.client_update(server_round, c)) for c in own]
        return WeightedSum(names, [(1 / share, whole), *minus])

    @property
    def sum_caveat(self) -> str | None:
        """Why sums are not the plain mean of the honest set's updates, if they are not."""
        if self._averages or all(self._sees_the_sum(number) for number in self.rounds):
            return None
        return (
            "The strategy or its defence does more than average, and this seat sees only the step "
            "that came of it: attacks on sums find less here than in the mean of the updates."
        )

    def _sees_the_sum(self, server_round: int) -> bool:
        """Whether this is the server's seat, and all that went into the sum was kept."""
        usable = self._usable[server_round]
        kept = all(usable[client] is None for client in self.summed(server_round))
        return self.threat_model.who == "server" and kept

    def _update(
        self, server_round: int, client: int, names: list[str]
    ) -> Mapping[str, NDArray[np.float64]]:
        """One client's update, as a part of a sum: nothing is granted of it alone."""
        before = self._received(server_round, client)
        return Update(names, before, self._arrays(server_round, client))

    def _weights(self, server_round: int, clients: tuple[int, ...]) -> dict[int, float]:
        """Share of each client in a mean weighted by examples; equal where a count is no count."""
        counts = {}
        for client in clients:
            reply = self._round(server_round).reply(client)
            count = None if reply is None else reply.num_examples
            counts[client] = float(count) if isinstance(count, int | float) and count > 0 else 0.0
        if not all(counts.values()):
            counts = dict.fromkeys(clients, 1.0)
        total = sum(counts.values())
        return {client: count / total for client, count in counts.items()}

    def honest_set(self, server_round: int) -> int:
        """How many clients' updates are in the sum that `sum_update` gives; public knowledge."""
        return len(self.summed(server_round))

    def summed(self, server_round: int) -> tuple[int, ...]:
        """Clients whose updates are in the sum that `sum_update` gives; who answers is public."""
        self._round(server_round)
        answered = [c for c in self._usable[server_round] if self._answers(server_round, c)]
        return tuple(c for c in answered if c not in self.threat_model.controls)

    def _answers(self, server_round: int, client: int) -> bool:
        """Whether a client's reply went into the aggregate, kept or not."""
        usable = self._usable[server_round]
        return client in usable and usable[client] in (None, LEFT_OUT, MODEL_LEFT_OUT)

    def _float_names(self, server_round: int) -> list[str]:
        broadcast = self._rounds[server_round].broadcast
        tensors = {} if broadcast is None else broadcast.tensors
        return [name for name, t in tensors.items() if t.dtype.startswith(("float", "bfloat"))]

    def aggregate(self, server_round: int) -> Mapping[str, NDArray[np.generic]] | None:
        """The next global model, or None if this round kept the old one. Needs AGGREGATE."""
        self._require("aggregate", Observation.AGGREGATE)
        self._round(server_round)
        return self._trace.arrays(server_round, "aggregate")

    def num_examples(self, server_round: int, client: int) -> float:
        """How many examples a client says it trained on. Needs EXAMPLE_COUNTS.

        Raises:
            InputError: If the client claimed no positive number that fits 64 bits.
        """
        self.threat_model.require("num_examples", NOTHING_SEEN, Knowledge.EXAMPLE_COUNTS)
        reply = self._round(server_round).reply(client)
        count = None if reply is None else reply.num_examples
        if not isinstance(count, int | float) or not 0 < count < 2**63:
            raise InputError(
                f"num-examples of client {client} in round {server_round}",
                count,
                "a positive number of examples, below 2**63, is needed",
                "Leave this client or round out.",
            )
        return float(count)

    def local_training(self, client: int) -> LocalTraining:
        """Learning rate, steps and batch size of a client. Needs LOCAL_TRAINING.

        Raises:
            InputError: If the run did not record it.
        """
        self.threat_model.require("local_training", NOTHING_SEEN, Knowledge.LOCAL_TRAINING)
        if self._local_training is None:
            raise InputError(
                "local_training",
                None,
                "this run did not record how its clients train",
                "Give CuriousStrategy(local_training=...), or use an attack that needs none.",
            )
        return self._local_training.of(client)

    def final_model(self) -> Mapping[str, NDArray[np.generic]]:
        """The global model after the last visible round. Needs FINAL_MODEL."""
        self._require("final_model", Observation.FINAL_MODEL)
        return self._final()

    def architecture(self) -> Any:
        """A fresh, untrained torch module of the model. Needs FINAL_MODEL.

        Raises:
            InputError: If the run does not say what its arrays belong to.
        """
        self._require("architecture", Observation.FINAL_MODEL)
        return self._build()

    def query(self, inputs: NDArray[np.float32], *, device: str = "cpu") -> NDArray[np.float64]:
        """Logits of the final model, shape (n, classes), float64. Needs LOGITS."""
        self._require("query", Observation.LOGITS)
        from fl_audit.trace.query import logits  # torch is not needed to open a view

        return logits(self._build(), self._final(), inputs, device=device)

    def _final(self) -> Mapping[str, NDArray[np.generic]]:
        last = max(self._rounds)
        if self._last_round is not None and (
            last < self._last_round or self._rounds[last].state != "aggregated"
        ):
            raise _not_recorded(f"the global model after round {self._last_round}")
        for number, index in reversed(self._rounds.items()):
            if index.aggregate is not None:
                aggregate = self._trace.arrays(number, "aggregate")
                if aggregate is None:  # never an older model in its place
                    raise _not_recorded(f"the global model after round {last}")
                return aggregate
        return self._arrays(last, "broadcast")  # nothing was aggregated yet

    def _build(self) -> Any:
        if self._model is None:
            raise InputError(
                "model",
                None,
                "this run does not say which architecture its arrays belong to",
                'Name a factory: --model "my_module:build", or CuriousStrategy(model=...).',
            )
        return self._model()

    def _require(self, name: str, observation: Observation) -> None:
        self.threat_model.require(f"TraceView.{name}", observation)

    def _round(self, server_round: int) -> RoundIndex:
        """The index of a round, if this view shows it."""
        if server_round not in self._rounds:
            raise TraceError(
                "round",
                server_round,
                "this view does not show it",
                f"Rounds in view: {list(self._rounds)}.",
            )
        return self._rounds[server_round]

    def _arrays(self, server_round: int, party: Any) -> LazyArrays:
        self._round(server_round)
        arrays = self._trace.arrays(server_round, party)
        if arrays is None and isinstance(party, int):
            why = self._usable[server_round].get(party)
            raise _not_usable(server_round, party, why or "it sent no arrays")
        if arrays is None:
            raise _not_recorded(f"the {party} of round {server_round}")
        return arrays


def _not_recorded(what: str) -> TraceError:
    return TraceError(
        "recording",
        what,
        "the recording policy did not keep it",
        "Record again with recording.record = 'all', or with this round among recording.rounds.",
    )


def _not_usable(server_round: int, client: int, why: str) -> TraceError:
    return TraceError(
        f"reply in round {server_round} of client",
        client,
        why,
        "Use the clients that TraceView.clients lists.",
    )

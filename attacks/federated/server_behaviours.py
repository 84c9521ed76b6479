"""How a malicious server behaves: from the global model to what one client receives in its place.

A behaviour knows nothing of Flower; `strategies.malicious` applies it. Only `IsolatedAscent`
remembers anything from one round to the next.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from attacks.federated.active import Stepping, add_update, bounded_ascent, chunk
from attacks.federated.traps import build_traps, plant_traps, trap_layer
from fl_audit.errors import AuditError, InputError, clean_text
from fl_audit.factories import load_attribute
from fl_audit.files import Arrays
from fl_audit.records import Records
from fl_audit.threat_model import NOTHING_KNOWN, Knowledge
from fl_audit.trace.view import ModelBuilder

Merge = Literal["as-sent", "update", "leave-out"]
"""What becomes of the reply to a tampered model. "as-sent": the strategy gets it as it came.
"update": the client's update, added to the honest global model. "leave-out": nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class ServerMeans:
    """What a malicious server has.

    Attributes:
        model: Builds the architecture.
        targets: Records it wants to know about, in the order in which their turn comes; who
            trains on them is not known to it.
        asked: Client in question for each target, shape (n,); None: any client.
        auxiliary: Records like the clients' that it has of its own; none unless its threat model
            grants them.
        rounds: How many are planned, so that all targets can have their turn.
        device: "cpu" or "cuda".
    """

    model: ModelBuilder
    targets: Records
    asked: NDArray[np.int64] | None
    auxiliary: Records
    rounds: int = 1
    device: str = "cpu"

    def targets_of(self, client: int) -> Records:
        """Targets that this client is asked about."""
        if self.asked is None:
            return self.targets
        return self.targets.take(np.flatnonzero(self.asked == client))


@dataclass(frozen=True, slots=True, eq=False)
class ServerTurn:
    """One client in one round.

    Attributes:
        server_round: From 1.
        client: Partition id where known, node id otherwise.
        model: The global model.
        last: What the client last sent back, if it ever sent a model that fits and is finite.
        answers: How many usable replies the client sent so far.
    """

    server_round: int
    client: int
    model: Arrays
    last: Arrays | None
    answers: int


@dataclass(frozen=True, slots=True, eq=False)
class _Chain:
    """What one client was last sent, by a server that keeps a private copy for it.

    Attributes:
        answers: How many usable replies the client had sent before.
        private: The private copy at that time.
        sent: What was made of it, and sent.
    """

    answers: int
    private: Arrays
    sent: Arrays


class ServerBehaviour(BaseModel):
    """Base of the behaviours; the fields are the settings of the `[adversary]` table."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    knows: ClassVar[Knowledge] = NOTHING_KNOWN
    """What it cannot do without."""

    victims: list[int] | None = None
    """Clients that receive another model than the global one; all by default."""
    merge: Merge = "as-sent"
    """What becomes of their replies: "as-sent", "update" or "leave-out"."""

    @abstractmethod
    def send(self, turn: ServerTurn, means: ServerMeans) -> Arrays:
        """The model that the client receives; `turn.model` itself if it is not tampered with."""

    def key(self, turn: ServerTurn, means: ServerMeans) -> Hashable:
        """Turns of one round with one key get one model, which is computed once."""
        return turn.client

    def check(self, means: ServerMeans) -> None:
        """Refuse, before the first round, what cannot work.

        Raises:
            InputError: Saying what is missing.
        """


class _Ascent(ServerBehaviour):
    """Settings of an ascent."""

    knows: ClassVar[Knowledge] = Knowledge.LABELS

    rate: float = Field(default=0.01, gt=0)
    """Length of a step: Adam's learning rate, or that of plain gradient steps."""
    stepping: Stepping = "adam"
    """"adam", or "plain": w += rate * gradient."""
    steps: int = Field(default=300, ge=1)
    """Steps a round."""
    max_change: float = Field(default=3.0, gt=0)
    """Largest distance of the sent model from where it started, as a share of its L2 norm there."""
    max_loss: float = Field(default=2.0, gt=0)
    """Nats; a target at or above it is left alone."""
    targets_per_round: int | None = Field(default=None, ge=1)
    """Targets at a time, round and round; by default, so many that each has its turn once."""
    hold: bool = True
    """Keep the model good at all other records that the server has, so that it is bad at the
    targets only. Without it, the ascent is that of Nasr et al."""

    def check(self, means: ServerMeans) -> None:
        """Needs targets."""
        _require_targets(means)

    def _climb(self, base: Arrays, turn: ServerTurn, means: ServerMeans) -> Arrays:
        own = means.targets_of(turn.client)
        size = self.targets_per_round or _share(own, means)
        rows = chunk(len(own), size, turn.answers)
        if not len(rows):
            return base
        others = own.take(np.setdiff1d(np.arange(len(own)), rows))
        return bounded_ascent(
            means.model(),
            base,
            own.take(rows),
            rate=self.rate,
            stepping=self.stepping,
            steps=self.steps,
            held=Records.concatenate([means.auxiliary, others]) if self.hold else None,
            max_change=self.max_change,
            max_loss=self.max_loss,
            device=means.device,
        )


class GradientAscent(_Ascent):
    """Climb the loss of the targets from the global model; owners pull it down again."""

    def send(self, turn: ServerTurn, means: ServerMeans) -> Arrays:
        """The global model, bad at the targets."""
        return self._climb(turn.model, turn, means)

    def key(self, turn: ServerTurn, means: ServerMeans) -> Hashable:
        """Without a client in question, all clients whose turn is the same get one model."""
        return turn.client if means.asked is not None else ("any", turn.answers)


class Isolation(ServerBehaviour):
    """Send a client its own last model back: nobody else's training dilutes what it memorises."""

    def send(self, turn: ServerTurn, means: ServerMeans) -> Arrays:
        """The client's own last model; the global one until it has sent one."""
        return turn.model if turn.last is None else turn.last


class IsolatedAscent(_Ascent):
    """Isolation, and an ascent from a private copy of the model for each client.

    The private copy takes up what the client did (reply minus sent model), never what the server
    did. If it took up replies as they came, each ascent would begin where all earlier ones ended:
    weights grow from round to round, and what a client changes tells less and less of what it
    trained on. One behaviour serves one run at a time: it remembers what it sent.
    """

    _chains: dict[int, _Chain] = PrivateAttr(default_factory=dict)

    def send(self, turn: ServerTurn, means: ServerMeans) -> Arrays:
        """The client's private copy, bad at the targets."""
        private = self._private_copy(turn)
        sent = self._climb(private, turn, means)
        self._chains[turn.client] = _Chain(turn.answers, private, sent)
        return sent

    def _private_copy(self, turn: ServerTurn) -> Arrays:
        chain = self._chains.get(turn.client)
        if turn.last is None or chain is None:  # the client never answered
            return turn.model
        if turn.answers == chain.answers:  # no reply to what went out last
            return chain.private
        return add_update(chain.private, chain.sent, turn.last)


class ReluTrap(ServerBehaviour):
    """Put neurons into the first dense layer that fire for one target each."""

    knows: ClassVar[Knowledge] = Knowledge.AUXILIARY_DATA

    merge: Merge = "update"
    """As for the others; by default the traps are taken out of what is merged."""
    margin: float = Field(default=0.01, gt=0, lt=1)
    """Fraction: a neuron fires from 1 - margin of its target's distance from the mean on."""
    traps: int | None = Field(default=None, ge=1)
    """Targets with traps in one model; by default so many that each has its turn once, but no more
    than half of the layer's neurons have room for."""
    neurons_per_target: int = Field(default=2, ge=1)
    """Neurons of one target: so many other records may fire them, and it is still told apart."""

    def check(self, means: ServerMeans) -> None:
        """Needs targets, other records, and a dense first layer with enough neurons."""
        _require_targets(means)
        state = means.model().state_dict()
        arrays = {name: value.cpu().numpy() for name, value in state.items()}
        width = len(arrays[trap_layer(arrays)[0]])
        if (self.traps or 1) * self.neurons_per_target > width:
            raise InputError(
                "adversary.traps * neurons_per_target",
                (self.traps or 1) * self.neurons_per_target,
                f"the model's first layer has {width} neurons",
                "Lower one: targets that find no room get their trap in a later round.",
            )
        build_traps(_flat(means.targets.take([0])), _flat(means.auxiliary), margin=self.margin)

    def send(self, turn: ServerTurn, means: ServerMeans) -> Arrays:
        """The global model with traps for the targets whose turn it is."""
        own = means.targets_of(turn.client)
        width = len(turn.model[trap_layer(turn.model)[0]])
        each = self.neurons_per_target
        room = self.traps or max(1, min(width // 2 // each, _share(own, means)))
        rows = chunk(len(own), room, turn.answers)
        if not len(rows):
            return turn.model
        targets, others = _flat(own.take(rows)), _flat(means.auxiliary)
        found = build_traps(targets, others, margin=self.margin, neurons=each)
        # spread over the layer: the first neurons are nothing special
        neurons = np.linspace(0, width - 1, each * len(rows)).round().astype(np.int64)
        return plant_traps(turn.model, found, neurons)

    def key(self, turn: ServerTurn, means: ServerMeans) -> Hashable:
        """Without a client in question, all clients whose turn is the same get one model."""
        return turn.client if means.asked is not None else ("any", turn.answers)


class ClientSpecific(ServerBehaviour):
    """Whatever a function of the scenario's author makes of the model, for each client."""

    function: str = ""
    """"module:function", called with (round, client, arrays); returns arrays. It may change the
    arrays that it is given. It is imported: name only code that you trust."""

    in_settings: ClassVar[str] = "adversary.function"

    def check(self, means: ServerMeans) -> None:
        """The function must be there, and take what it is given."""
        function = self._function()
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some built-in functions have none
            return
        try:
            signature.bind(1, 0, {})
        except TypeError as error:
            raise InputError(
                self.in_settings,
                self.function,
                f"it is called with (round, client, arrays), and its parameters are {signature}",
                "Give it three positional parameters.",
            ) from error

    def send(self, turn: ServerTurn, means: ServerMeans) -> Arrays:
        """What the function returns.

        Raises:
            InputError: If it fails, or returns anything but arrays by name.
        """
        copies = {name: np.array(array) for name, array in turn.model.items()}
        when = f"for client {turn.client} in round {turn.server_round}"
        try:
            given = self._function()(turn.server_round, turn.client, copies)
        except AuditError:
            raise
        except Exception as error:
            raise InputError(
                self.in_settings,
                self.function,
                f"it failed {when}: {clean_text(f'{type(error).__name__}: {error}', 200)}",
                "Correct the function.",
            ) from error
        odd = _not_arrays(given)
        if odd is not None:
            raise InputError(
                self.in_settings,
                self.function,
                f"it must return arrays by name, and {when} it returned {odd}",
                "Return a dict of NumPy arrays with the names that it was given.",
            )
        return dict(given)

    def _function(self) -> Callable[..., Any]:
        if ":" not in self.function:
            raise InputError(
                self.in_settings,
                self.function,
                'must read "module:function"',
                "Name a function of (round, client, arrays) that returns arrays.",
            )
        function: Callable[..., Any] = load_attribute(self.function, self.in_settings)
        if not callable(function):
            raise InputError(self.in_settings, self.function, "is no function", "Name a function.")
        return function


def _not_arrays(given: object) -> str | None:
    """What this is, if it is not arrays by name."""
    if not isinstance(given, Mapping):
        return f"a {type(given).__name__}"
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            return f"a {type(value).__name__} under {clean_text(name, 80)!r}"
    return None


def _require_targets(means: ServerMeans) -> None:
    if not len(means.targets):
        raise InputError(
            "adversary",
            "no targets",
            "this behaviour needs records to ask about",
            "Play a membership game: [game] members = 200.",
        )


def _share(own: Records, means: ServerMeans) -> int:
    """Targets of a round if all are to have their turn."""
    return max(1, -(-len(own) // means.rounds))


def _flat(records: Records) -> NDArray[np.float64]:
    size = prod(records.input_shape)  # -1 has no answer where there is no record
    return np.asarray(records.inputs[:]).reshape(len(records), size).astype(np.float64)


SERVER_BEHAVIOURS: dict[str, type[ServerBehaviour]] = {
    "client_specific": ClientSpecific,
    "gradient_ascent": GradientAscent,
    "isolated_ascent": IsolatedAscent,
    "isolation": Isolation,
    "relu_trap": ReluTrap,
}

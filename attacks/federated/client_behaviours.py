"""How malicious clients behave: from what a client received and would have sent to what it sends.

Pure: a behaviour knows nothing of Flower. `strategies.malicious_clients` makes a mod of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from attacks.federated.active import add_update, bounded_ascent
from attacks.federated.gan import PictureGenerator, generate, new_generator, train_generator
from attacks.federated.poison import LabelRule, poison_records
from attacks.federated.tampering import Model, scale_update
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from fl_audit.records import Records
from fl_audit.trace.view import ModelBuilder

_MOST = 1e6
"""Of the size of a lie, as a multiple: more than clients are, and float32 holds the result."""

Retrain = Callable[[Arrays, Records, int], Arrays]
"""(received model, what else to train on, round) -> the model after honest local training on the
client's own records and those."""


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """What a malicious client has.

    Attributes:
        model: Builds the architecture.
        targets: Records it wants to know about; who trains on them is not known to it.
        own: Its own training records.
        num_classes: Outputs of the model.
        retrain: Its local training.
    """

    model: ModelBuilder
    targets: Records
    own: Records
    num_classes: int
    retrain: Retrain


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One client in one round.

    Attributes:
        server_round: From 1.
        before: The model it received.
        after: The model it would send if it were honest (past its defence if outside).
        rng: Depends on (seed, round, client) only.
        memory: Arrays it keeps from round to round; empty in its first round.
    """

    server_round: int
    before: Arrays
    after: Arrays
    rng: np.random.Generator
    memory: MutableMapping[str, NDArray[np.generic]]


class Behaviour(BaseModel):
    """Base of the behaviours; the fields are the settings of the `[adversary]` table."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    in_shadows: ClassVar[bool] = True
    """Whether clients of shadow federations, whose records are dealt anew, can behave like this."""

    @abstractmethod
    def forge(self, turn: Turn, means: Means) -> Arrays:
        """The model that the client sends in place of `turn.after`."""

    def check(self, means: Means) -> None:
        """Refuse, before the first round, a client that cannot behave like this.

        Raises:
            InputError: Saying what is missing.
        """


class Scaling(Behaviour):
    """The update times a factor (model replacement needs the number of clients as the factor)."""

    factor: float = Field(default=5.0, ge=-_MOST, le=_MOST)

    def forge(self, turn: Turn, means: Means) -> Model:
        """before + factor * (after - before)."""
        return scale_update(turn.before, turn.after, self.factor)


class SignFlip(Behaviour):
    """The update with its sign turned, times `strength`."""

    strength: float = Field(default=1.0, gt=0, le=_MOST)

    def forge(self, turn: Turn, means: Means) -> Model:
        """before - strength * (after - before)."""
        return scale_update(turn.before, turn.after, -self.strength)


class GradientAscent(Behaviour):
    """Climb the loss of the targets, every `every` rounds, on top of the honest update."""

    rate: float = Field(default=1.0, gt=0)
    """Length of a step, as a learning rate on the mean loss of the targets."""
    steps: int = Field(default=20, ge=1)
    """Most steps a round."""
    max_change: float = Field(default=0.1, gt=0)
    """Largest distance of the climb, as a share of the model's L2 norm."""
    max_loss: float = Field(default=2.0, gt=0)
    """Nats; a target at or above it is left alone."""
    every: int = Field(default=1, ge=1)
    """Rounds 1, 1 + every, ...; owners pull the loss down in all rounds."""
    boost: float = Field(default=5.0, gt=0, le=_MOST)
    """The climb times this: the number of clients undoes the server's averaging."""

    def forge(self, turn: Turn, means: Means) -> Arrays:
        """The honest model, moved up the targets' loss."""
        if (turn.server_round - 1) % self.every:
            return turn.after
        high = bounded_ascent(
            means.model(),
            turn.before,
            means.targets,
            rate=self.rate,
            steps=self.steps,
            max_change=self.max_change,
            max_loss=self.max_loss,
        )
        return add_update(turn.after, turn.before, scale_update(turn.before, high, self.boost))

    def check(self, means: Means) -> None:
        """Needs targets."""
        _require_targets(means)


class Poison(Behaviour):
    """Train on copies of the targets under another label (Truth Serum)."""

    copies: int = Field(default=1, ge=1)
    label: LabelRule = "next"
    boost: float = Field(default=1.0, gt=0, le=_MOST)
    """The poisoned update times this: the number of clients undoes the server's averaging."""

    def forge(self, turn: Turn, means: Means) -> Arrays:
        """Local training again, on own and poisoned records."""
        extra = poison_records(
            means.targets,
            copies=self.copies,
            rule=self.label,
            num_classes=means.num_classes,
            rng=turn.rng,
        )
        poisoned = means.retrain(turn.before, extra, turn.server_round)
        return scale_update(turn.before, poisoned, self.boost)

    def check(self, means: Means) -> None:
        """Needs targets."""
        _require_targets(means)


class HitajGan(Behaviour):
    """Learn to draw a class of somebody else's, and plant the drawings under another label."""

    in_shadows: ClassVar[bool] = False  # who owns which class is another matter there

    victim_class: int | None = Field(default=None, ge=0)
    """The class to reconstruct; the first that the client has no record of by default."""
    label: int | None = Field(default=None, ge=0)
    """The class that drawings are planted under; the first of the client's own by default."""
    planted: int = Field(default=20, ge=0)
    """Drawings that join the client's training each round; 0: only watch."""
    noise: int = Field(default=16, ge=1)
    hidden: int = Field(default=64, ge=1)
    steps: int = Field(default=200, ge=1)
    batch: int = Field(default=64, ge=1)
    rate: float = Field(default=0.005, gt=0)
    smoothness: float = Field(default=2.0, ge=0)

    def classes(self, own: Records, num_classes: int) -> tuple[int, int]:
        """(victim class, class to plant under).

        Raises:
            InputError: If there is no such class, or the client owns it, or all classes.
        """
        if self.victim_class is not None and self.victim_class >= num_classes:
            raise InputError(
                "adversary.victim_class",
                self.victim_class,
                f"there is no such class: the model has {num_classes}, counted from 0",
                "Name one of them.",
            )
        held = sorted(set(own.labels.tolist()))
        foreign = [c for c in range(num_classes) if c not in held]
        victim = foreign[0] if self.victim_class is None and foreign else self.victim_class
        if victim is None or victim not in foreign:
            raise InputError(
                "adversary.victim_class",
                self.victim_class,
                f"the malicious client must not own it, and it has records of {held}",
                'Choose another class, or let clients hold few: partition.kind = "by-class".',
            )
        label = held[0] if self.label is None else self.label
        if label == victim or label >= num_classes:
            raise InputError(
                "adversary.label",
                label,
                f"must be one of the model's {num_classes} classes and not the victim's",
                "Choose a class of the client's own, or one that nobody has.",
            )
        return victim, label

    def check(self, means: Means) -> None:
        """Needs a class of others."""
        self.classes(means.own, means.num_classes)

    def draw(
        self,
        turn: Turn,
        model: ModelBuilder,
        *,
        victim_class: int,
        input_shape: tuple[int, ...],
    ) -> tuple[PictureGenerator, torch.Generator]:
        """Train the remembered generator (or a new one) on the received model; remember it.

        Whoever has the received models and the draws gets the same generator, so a simulation can
        replay it from the trace.
        """
        generator = torch.Generator().manual_seed(int(turn.rng.integers(2**63)))
        net = new_generator(input_shape, noise=self.noise, hidden=self.hidden, generator=generator)
        if turn.memory:
            kept = {name: torch.from_numpy(np.array(a)) for name, a in turn.memory.items()}
            net.load_state_dict(kept)
        train_generator(
            net,
            model(),
            turn.before,
            victim_class=victim_class,
            steps=self.steps,
            batch=self.batch,
            rate=self.rate,
            smoothness=self.smoothness,
            generator=generator,
        )
        turn.memory.update({n: v.detach().numpy() for n, v in net.state_dict().items()})
        return net, generator

    def forge(self, turn: Turn, means: Means) -> Arrays:
        """Local training again, on own records and drawings."""
        victim, label = self.classes(means.own, means.num_classes)
        net, generator = self.draw(
            turn, means.model, victim_class=victim, input_shape=means.own.input_shape
        )
        if not self.planted:
            return turn.after
        drawings = generate(net, self.planted, generator=generator)
        ids = np.full(self.planted, -1, dtype=np.int64)
        labels = np.full(self.planted, label, dtype=np.int64)
        return means.retrain(turn.before, Records(ids, drawings, labels), turn.server_round)


def _require_targets(means: Means) -> None:
    if not len(means.targets):
        raise InputError(
            "adversary",
            "no targets",
            "this behaviour needs records to ask about",
            "Play a membership game: [game] members = 200.",
        )


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "gradient_ascent": GradientAscent,
    "hitaj_gan": HitajGan,
    "poison": Poison,
    "scaling": Scaling,
    "sign_flip": SignFlip,
}

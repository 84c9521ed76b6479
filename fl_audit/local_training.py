"""How a client trains between two rounds: what inversion must know, so it is recorded."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from fl_audit.results import Record


class LocalTraining(Record):
    """Local training of one client.

    `fedavg` runs `local_epochs` passes over the client's data in shuffled batches; `fedsgd` takes
    one gradient step on one batch drawn at random. Both reply with the resulting model. The
    optimizer is SGD (momentum starts anew each round) on mean cross-entropy plus the proximal term
    mu/2 * ||w - w_global||^2.
    """

    algorithm: Literal["fedavg", "fedsgd"] = "fedavg"
    learning_rate: float = Field(default=0.1, gt=0, description="In the first round")
    local_epochs: int = Field(default=2, ge=1, description="Ignored by fedsgd")
    batch_size: int = Field(default=20, ge=1, description="Examples a step")
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    proximal_mu: float = Field(default=0.0, ge=0, description="With FedProx, the strategy's")
    schedule: Literal["constant", "exponential", "step", "cosine"] = "constant"
    decay: float = Field(default=0.1, gt=0, le=1, description="Factor of exponential and step")
    decay_rounds: int = Field(
        default=10, ge=1, description="Rounds a step lasts; rounds until cosine reaches 0"
    )

    def steps(self, num_examples: int) -> int:
        """Gradient steps a round for a client with this many examples."""
        if self.algorithm == "fedsgd":
            return 1
        return self.local_epochs * -(-num_examples // self.batch_size)

    def learning_rate_in(self, server_round: int) -> float:
        """The learning rate of a round (from 1).

        constant: learning_rate; exponential: times `decay` each round; step: times `decay` every
        `decay_rounds` rounds; cosine: half a cosine from learning_rate to 0 in `decay_rounds`.
        """
        past = server_round - 1
        if self.schedule == "exponential":
            return self.learning_rate * self.decay**past
        if self.schedule == "step":
            return self.learning_rate * self.decay ** (past // self.decay_rounds)
        if self.schedule == "cosine":
            share = min(1.0, past / self.decay_rounds)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        return self.learning_rate


class LocalTrainings(Record):
    """Local training of a federation: a default, and the clients that differ from it."""

    default: LocalTraining = LocalTraining()
    clients: dict[int, LocalTraining] = Field(default_factory=dict)

    def of(self, client: int) -> LocalTraining:
        """The local training of one client."""
        return self.clients.get(client, self.default)

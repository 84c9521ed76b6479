"""How a client trains between two rounds: what inversion must know, so it is recorded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fl_audit.results import Record


class LocalTraining(Record):
    """Local training of one client.

    `fedavg` runs `local_epochs` passes over the client's data in shuffled batches; `fedsgd` takes
    one gradient step on one batch drawn at random. Both reply with the resulting model.
    """

    algorithm: Literal["fedavg", "fedsgd"] = "fedavg"
    learning_rate: float = Field(default=0.1, gt=0)
    local_epochs: int = Field(default=2, ge=1, description="Ignored by fedsgd")
    batch_size: int = Field(default=20, ge=1, description="Examples a step")

    def steps(self, num_examples: int) -> int:
        """Gradient steps a round for a client with this many examples."""
        if self.algorithm == "fedsgd":
            return 1
        return self.local_epochs * -(-num_examples // self.batch_size)


class LocalTrainings(Record):
    """Local training of a federation: a default, and the clients that differ from it."""

    default: LocalTraining = LocalTraining()
    clients: dict[int, LocalTraining] = Field(default_factory=dict)

    def of(self, client: int) -> LocalTraining:
        """The local training of one client."""
        return self.clients.get(client, self.default)

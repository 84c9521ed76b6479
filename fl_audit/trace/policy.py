"""What of a federation is kept on disk."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fl_audit.errors import InputError
from fl_audit.results import Record


class RecordingPolicy(Record):
    """How much to record.

    - "all": every model and every reply.
    - "targets": replies of `clients` in `rounds` (each: all if null), with the models they belong
      to, and the final model. Of all else, counts and errors; of models, their digests.
    - "none": counts and errors only. No attack can run on such a trace.

    What a policy leaves out is as if it had not been seen: attacks get no update of it.
    """

    record: Literal["all", "targets", "none"] = "all"
    clients: list[int] | None = Field(default=None, description="targets: which clients")
    rounds: list[int] | None = Field(default=None, description="targets: which rounds")
    max_megabytes: float | None = Field(
        default=None,
        gt=0,
        description="Most megabytes of arrays to store, models included. When it is reached, "
        "nothing of clients is stored any more, and of models only the last, if it fits. Counts "
        "and digests, a few kB a round, are always written.",
    )

    @model_validator(mode="after")
    def _targets_are_named(self) -> RecordingPolicy:
        named = self.clients is not None or self.rounds is not None
        if self.record == "targets" and not named:
            raise InputError(
                "record", self.record, "needs clients or rounds", "Name the clients, or the rounds."
            )
        if self.record != "targets" and named:
            raise InputError(
                "record",
                self.record,
                "clients and rounds do not apply to it",
                "Leave them out, or set record = 'targets'.",
            )
        return self

    def keeps_models(self, server_round: int) -> bool:
        """Whether the models of a round are stored."""
        if self.record == "targets":
            return self.rounds is None or server_round in self.rounds
        return self.record == "all"

    def keeps_reply(self, server_round: int, client: int) -> bool:
        """Whether the arrays that a client sends in a round are stored."""
        chosen = self.clients is None or client in self.clients
        return self.keeps_models(server_round) and chosen

"""Where things stand in a trace. Names follow from (round, party) and are read from no file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

INDEX = "round.json"
DIGESTS = "digests.json"


class SentTo(NamedTuple):
    """The model that one client received, where it is not the round's global model."""

    client: int


Party = Literal["broadcast", "aggregate"] | int | SentTo
"""Whose arrays: the global models before and after a round, a client's reply, or what it got."""


def round_directory(trace: Path, server_round: int) -> Path:
    """Where a round of a trace stands."""
    return trace / f"round_{server_round:04d}"


def index_file(trace: Path, server_round: int) -> Path:
    """The index of a round."""
    return round_directory(trace, server_round) / INDEX


def arrays_file(trace: Path, server_round: int, party: Party) -> Path:
    """The arrays of one party in a round."""
    return round_directory(trace, server_round) / f"{party_name(party)}.safetensors"


def party_name(party: Party) -> str:
    """ "broadcast", "aggregate", "client_3" (what it replied) or "sent_3" (what it received)."""
    if isinstance(party, SentTo):
        return f"sent_{party.client}"
    return f"client_{party}" if isinstance(party, int) else party

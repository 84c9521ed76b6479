"""Where things stand in a trace. Names follow from (round, party) and are read from no file."""

from __future__ import annotations

from pathlib import Path

INDEX = "round.json"
DIGESTS = "digests.json"


def round_directory(trace: Path, server_round: int) -> Path:
    """Where a round of a trace stands."""
    return trace / f"round_{server_round:04d}"


def index_file(trace: Path, server_round: int) -> Path:
    """The index of a round."""
    return round_directory(trace, server_round) / INDEX


def arrays_file(trace: Path, server_round: int, party: str | int) -> Path:
    """The arrays of "broadcast", "aggregate" or a client."""
    name = f"client_{party}" if isinstance(party, int) else party
    return round_directory(trace, server_round) / f"{name}.safetensors"

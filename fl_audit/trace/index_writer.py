"""Writing the index of each round, step by step, and its digest once it is final."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fl_audit.errors import TraceError
from fl_audit.files import write_text
from fl_audit.trace.digests import IndexDigests
from fl_audit.trace.index import RoundIndex
from fl_audit.trace.layout import index_file

_STATES = ("sent", "replied", "aggregated")


class IndexWriter:
    """Writes round.json of the round in progress, and knows it.

    Args:
        trace: The trace's folder.
        recorded: Rounds that an earlier process recorded, and that are replayed: what is there is
            not replaced by less.
    """

    def __init__(self, trace: Path, recorded: Mapping[int, RoundIndex]) -> None:
        self._trace, self._recorded = trace, recorded
        self._digests = IndexDigests(trace)
        self._is_sealed = True  # whether the current index is final, and its digest written
        self.latest: RoundIndex | None = None

    def current(self, server_round: int) -> RoundIndex:
        """The index of the round in progress.

        Raises:
            TraceError: If another round is, or none.
        """
        if self.latest is None or self.latest.round != server_round:
            raise TraceError(
                f"trace round {server_round}",
                self.latest and self.latest.round,
                "replies or an aggregate came for a round that was not begun",
                "Call begin_round first; recording of this round was lost.",
            )
        return self.latest

    def save(self, index: RoundIndex) -> None:
        """Write the index of the round in progress, as far as it got."""
        self.latest = index
        recorded = self._recorded.get(index.round)
        if recorded is not None and _STATES.index(recorded.state) > _STATES.index(index.state):
            self._is_sealed = True
            return  # a replay that has not yet come as far as what is recorded
        self._is_sealed = False
        is_final = index.state == "aggregated"
        self._write(index, seal=is_final)
        self._is_sealed = is_final

    def update(self, server_round: int, **changes: object) -> None:
        """Change fields of the index of the round in progress, and write it."""
        self.save(self.current(server_round).model_copy(update=changes))

    def amend(self, index: RoundIndex) -> None:
        """Write the index of an earlier round anew."""
        self._write(index, seal=True)

    def leave(self) -> None:
        """Seal an index whose round ended early, or that could not be written when it should."""
        if self.latest is not None and not self._is_sealed:
            self._write(self.latest, seal=True)
            self._is_sealed = True

    def close(self) -> None:
        """Seal the last index."""
        self.leave()
        self._digests.settle()

    def _write(self, index: RoundIndex, *, seal: bool) -> None:
        # a round without models of single clients reads as it did before there were any
        text = index.model_dump_json(exclude=None if index.sent else {"sent"})
        if seal or index.round in self._digests:  # or sealed by an earlier process
            self._digests.announce(index.round, text)
        write_text(index_file(self._trace, index.round), text)

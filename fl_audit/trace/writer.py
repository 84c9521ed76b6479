"""Writing a trace: bytes are on disk before the strategy aggregates.

What is written survives the death of the process. It is not forced through the disk's cache, so
a power cut may cost the round in progress.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from fl_audit.errors import TraceError, clean_text
from fl_audit.files import Arrays, private_directory, sha256_array, write_arrays, write_text
from fl_audit.trace.index import ArraysEntry, ReplyEntry, RoundIndex, TensorEntry, plain_metric

NUM_EXAMPLES = "num-examples"  # Flower's key for how many examples a client trained on
UNSTORABLE = -2  # error code of ours: arrays came that no file can hold (odd dtypes or names)


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """What one client answered, as plain data: the writer knows nothing of Flower.

    Attributes:
        client: Partition id where known, node id otherwise.
        arrays: The arrays it sent, or None if it sent none.
        metrics: The metrics it sent, its example count (`num-examples`) included.
        error_code: Flower's error code, if the client failed.
        error_reason: The client's own words, if it failed.
    """

    client: int
    arrays: Arrays | None
    metrics: Mapping[str, object] = field(default_factory=dict)
    error_code: int | None = None
    error_reason: str | None = None


class TraceWriter:
    """Writes rounds: `begin_round`, `add_replies`, `end_round`. Never writes one twice."""

    def __init__(self, directory: Path) -> None:
        self.directory = private_directory(directory)
        self._round: RoundIndex | None = None
        self._last_aggregate: tuple[int, dict[str, TensorEntry]] | None = None

    def begin_round(self, server_round: int, broadcast: Arrays, sampled: Sequence[int]) -> None:
        """Write the model that goes out, and to whom.

        Raises:
            TraceError: If the round was recorded before.
        """
        self._round = None  # whatever goes wrong here must not end up in the round before
        if _index_file(self.directory, server_round).exists():
            raise TraceError(
                "trace round",
                server_round,
                "it was recorded before, and a recorded round is never overwritten",
                "Record every run in a directory of its own.",
            )
        private_directory(round_directory(self.directory, server_round))
        self._save(
            RoundIndex(
                round=server_round,
                state="sent",
                sampled=list(sampled),
                broadcast=self._broadcast(server_round, broadcast),
            )
        )

    def add_replies(self, server_round: int, replies: Sequence[Reply]) -> None:
        """Write every reply as it arrived; when this returns, the round is safe.

        A reply that no file can hold is recorded as an error of that client.

        Raises:
            TraceError: If the round was not begun, or a client stands there twice.
        """
        self._current(server_round)
        counts = Counter(reply.client for reply in replies)
        twice = sorted(client for client, count in counts.items() if count > 1)
        if twice:
            raise TraceError(
                f"replies of round {server_round}",
                twice,
                "these clients replied more than once",
                "Give every node a client number of its own.",
            )
        entries = [self._reply(server_round, reply) for reply in replies]
        self._update(server_round, state="replied", replies=entries)

    def unfit_replies(self) -> list[str]:
        """One line for each reply of this round that cannot be stored or is not finite."""
        lines = []
        for reply in [] if self._round is None else self._round.replies:
            if reply.error_code == UNSTORABLE:
                lines.append(f"client {reply.client}: {reply.error_reason}")
            elif reply.arrays is not None and not reply.is_finite:
                lines.append(f"client {reply.client} sent NaN or infinite values")
        return lines

    def end_round(
        self, server_round: int, aggregate: Arrays | None, metrics: Mapping[str, object]
    ) -> None:
        """Write what the strategy made of the replies (None: it kept the old model)."""
        self._current(server_round)
        entry = None
        if aggregate is not None:
            entry = self._write(server_round, "aggregate", aggregate)
            self._last_aggregate = (server_round, entry.tensors)
        plain = {clean_text(name): plain_metric(value) for name, value in metrics.items()}
        self._update(server_round, state="aggregated", aggregate=entry, metrics=plain)

    def _broadcast(self, server_round: int, arrays: Arrays) -> ArraysEntry:
        tensors = describe(arrays)
        if self._last_aggregate is not None and self._last_aggregate[1] == tensors:
            return ArraysEntry(
                tensors=tensors, file_sha256=None, same_as_aggregate=self._last_aggregate[0]
            )
        return self._write(server_round, "broadcast", arrays, tensors)

    def _reply(self, server_round: int, reply: Reply) -> ReplyEntry:
        entry = None
        if reply.arrays is not None:
            try:
                entry = self._write(server_round, f"client_{reply.client}", reply.arrays)
            except (SafetensorError, ValueError, TypeError) as error:  # not OSError: a disk's fault
                why = f"its arrays cannot be stored: {error}"
                reply = replace(reply, arrays=None, error_code=UNSTORABLE, error_reason=why)
        arrays = reply.arrays
        return ReplyEntry(
            client=reply.client,
            arrays=entry,
            num_examples=plain_metric(reply.metrics[NUM_EXAMPLES])
            if NUM_EXAMPLES in reply.metrics
            else None,
            metrics={clean_text(k): plain_metric(v) for k, v in reply.metrics.items()},
            is_finite=arrays is not None and all(is_finite(a) for a in arrays.values()),
            error_code=reply.error_code,
            error_reason=None if reply.error_reason is None else clean_text(reply.error_reason),
        )

    def _write(
        self,
        server_round: int,
        party: str,
        arrays: Arrays,
        tensors: dict[str, TensorEntry] | None = None,
    ) -> ArraysEntry:
        path = round_directory(self.directory, server_round) / f"{party}.safetensors"
        return ArraysEntry(
            tensors=describe(arrays) if tensors is None else tensors,
            file_sha256=write_arrays(path, arrays),
        )

    def _current(self, server_round: int) -> RoundIndex:
        if self._round is None or self._round.round != server_round:
            raise TraceError(
                f"trace round {server_round}",
                self._round and self._round.round,
                "replies or an aggregate came for a round that was not begun",
                "Call begin_round first; recording of this round was lost.",
            )
        return self._round

    def _update(self, server_round: int, **changes: object) -> None:
        self._save(self._current(server_round).model_copy(update=changes))

    def _save(self, index: RoundIndex) -> None:
        self._round = index
        path = _index_file(self.directory, index.round)
        write_text(path, index.model_dump_json(exclude_defaults=False))


def describe(arrays: Arrays) -> dict[str, TensorEntry]:
    """dtype, shape and digest of each array."""
    return {
        name: TensorEntry(
            dtype=str(a.dtype.newbyteorder("=")), shape=list(a.shape), sha256=sha256_array(a)
        )
        for name, a in arrays.items()
    }


def round_directory(trace: Path, server_round: int) -> Path:
    """Where a round of a trace stands."""
    return trace / f"round_{server_round:04d}"


def is_finite(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    """Whether an array holds neither NaN nor infinities."""
    return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())


def _index_file(trace: Path, server_round: int) -> Path:
    return round_directory(trace, server_round) / "round.json"

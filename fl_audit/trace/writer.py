"""Writing a trace: bytes are on disk before the strategy aggregates.

What is written survives the death of the process. It is not forced through the disk's cache, so
a power cut may cost the round in progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fl_audit.errors import TraceError, clean_text
from fl_audit.files import Arrays, private_directory, sha256_array, write_arrays, write_text
from fl_audit.trace.index import ArraysEntry, ReplyEntry, RoundIndex, TensorEntry, plain_metric

NUM_EXAMPLES = "num-examples"  # Flower's key for how many examples a client trained on


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
    """Writes rounds in order: `begin_round`, `add_replies`, `end_round`."""

    def __init__(self, directory: Path) -> None:
        self.directory = private_directory(directory)
        self._round: RoundIndex | None = None
        self._last_aggregate: tuple[int, dict[str, TensorEntry]] | None = None

    def begin_round(self, server_round: int, broadcast: Arrays, sampled: Sequence[int]) -> None:
        """Write the model that goes out, and to whom."""
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
        """Write every reply as it arrived; when this returns, the round is safe."""
        entries = [self._reply(server_round, reply) for reply in replies]
        self._update(server_round, state="replied", replies=entries)

    def unfit_replies(self) -> list[str]:
        """One line for each reply of this round that holds NaN or infinite values."""
        replies = [] if self._round is None else self._round.replies
        return [
            f"client {r.client} sent NaN or infinite values"
            for r in replies
            if r.arrays is not None and not r.is_finite
        ]

    def end_round(
        self, server_round: int, aggregate: Arrays | None, metrics: Mapping[str, object]
    ) -> None:
        """Write what the strategy made of the replies (None: it kept the old model)."""
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
        arrays = reply.arrays
        return ReplyEntry(
            client=reply.client,
            arrays=None
            if arrays is None
            else self._write(server_round, f"client_{reply.client}", arrays),
            num_examples=plain_metric(reply.metrics[NUM_EXAMPLES])
            if NUM_EXAMPLES in reply.metrics
            else None,
            metrics={clean_text(k): plain_metric(v) for k, v in reply.metrics.items()},
            is_finite=arrays is not None and all(_is_finite(a) for a in arrays.values()),
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

    def _update(self, server_round: int, **changes: object) -> None:
        if self._round is None or self._round.round != server_round:
            raise TraceError(
                f"trace round {server_round}",
                self._round and self._round.round,
                "replies or an aggregate came for a round that was not begun",
                "Call begin_round first; recording of this round was lost.",
            )
        self._save(self._round.model_copy(update=changes))

    def _save(self, index: RoundIndex) -> None:
        self._round = index
        path = round_directory(self.directory, index.round) / "round.json"
        write_text(path, index.model_dump_json(exclude_defaults=False))


def describe(arrays: Arrays) -> dict[str, TensorEntry]:
    """dtype, shape and digest of each array."""
    return {
        name: TensorEntry(dtype=str(a.dtype), shape=list(a.shape), sha256=sha256_array(a))
        for name, a in arrays.items()
    }


def round_directory(trace: Path, server_round: int) -> Path:
    """Where a round of a trace stands."""
    return trace / f"round_{server_round:04d}"


def _is_finite(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())

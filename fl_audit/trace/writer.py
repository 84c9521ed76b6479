"""Writing a trace: bytes are on disk before the strategy aggregates.

What is written survives the death of the process. It is not forced through the disk's cache, so
a power cut may cost the round in progress. Digests of replies are computed in the background,
while the strategy aggregates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from fl_audit.errors import TraceError, clean_text
from fl_audit.files import (
    Arrays,
    private_directory,
    sha256_array,
    sha256_file,
    write_arrays,
    write_text,
)
from fl_audit.trace.index import ArraysEntry, ReplyEntry, RoundIndex, TensorEntry, plain_metric
from fl_audit.trace.policy import RecordingPolicy
from fl_audit.trace.replay import check_replay

NUM_EXAMPLES = "num-examples"  # Flower's key for how many examples a client trained on
UNSTORABLE = -2  # error code of ours: arrays came that no file can hold (odd dtypes or names)
_MEGA = 1_000_000
_STATES = ("sent", "replied", "aggregated")


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
    """Writes rounds: `begin_round`, `add_replies`, `end_round`. Never writes one twice.

    Args:
        directory: The trace's folder.
        policy: What to keep.
        recorded: Rounds that an earlier, interrupted process recorded. They are replayed: written
            again only if they are the same, else `ReplayError`.
    """

    def __init__(
        self,
        directory: Path,
        policy: RecordingPolicy | None = None,
        *,
        recorded: Mapping[int, RoundIndex] | None = None,
    ) -> None:
        self.directory = private_directory(directory)
        self.policy = policy or RecordingPolicy()
        self._recorded = dict(recorded or {})
        self._round: RoundIndex | None = None
        self._latest: RoundIndex | None = None  # the last round with an aggregate
        self._bytes = 0
        self._digests = ThreadPoolExecutor(1, thread_name_prefix="fl-audit-digests")
        self._pending: Future[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether arrays are no longer stored, because the policy's cap is reached."""
        cap = self.policy.max_megabytes
        return cap is not None and self._bytes >= cap * _MEGA

    def begin_round(self, server_round: int, broadcast: Arrays, sampled: Sequence[int]) -> None:
        """Write the model that goes out, and to whom.

        Raises:
            TraceError: If the round was recorded before, by another run.
            ReplayError: If it was recorded before, by this run, and differs.
        """
        self.flush()
        self._round = None  # whatever goes wrong here must not end up in the round before
        if _index_file(self.directory, server_round).exists() and not self._recorded:
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
            ReplayError: If the round was recorded before, by this run, and differs.
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
        if server_round in self._recorded:
            self._check_replies(server_round, replies)
        entries = [self._reply(server_round, reply) for reply in replies]
        self._update(server_round, state="replied", replies=entries)
        arrays = {reply.client: reply.arrays for reply in replies if reply.arrays is not None}
        self._pending = self._digests.submit(self._digest, server_round, arrays)

    def unfit_replies(self) -> list[str]:
        """One line for each reply of this round that cannot be stored or is not finite."""
        lines = []
        for reply in [] if self._round is None else self._round.replies:
            if reply.error_code == UNSTORABLE:
                lines.append(f"client {reply.client}: {reply.error_reason}")
            elif reply.is_finite is False and reply.arrays is not None:
                lines.append(f"client {reply.client} sent NaN or infinite values")
        return lines

    def end_round(
        self, server_round: int, aggregate: Arrays | None, metrics: Mapping[str, object]
    ) -> None:
        """Write what the strategy made of the replies (None: it kept the old model)."""
        self.flush()
        self._current(server_round)
        entry = None
        if aggregate is not None and self.policy.record != "none":
            entry = self._aggregate(server_round, aggregate)
        plain = {clean_text(name): plain_metric(value) for name, value in metrics.items()}
        self._update(server_round, state="aggregated", aggregate=entry, metrics=plain)
        if entry is not None:
            self._drop_latest()
            self._latest = self._round

    def flush(self) -> None:
        """Wait until every digest is on disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Write what is pending, and end the background thread."""
        self.flush()
        self._digests.shutdown()

    def _broadcast(self, server_round: int, arrays: Arrays) -> ArraysEntry | None:
        if self.policy.record == "none":
            return None
        tensors = describe(arrays)
        keep = self.policy.keeps_models(server_round)
        latest = self._latest
        if latest is not None and latest.aggregate and latest.aggregate.tensors == tensors:
            if keep and latest.aggregate.is_stored:
                self._latest = None  # this round refers to its file, which therefore stays
            entry = ArraysEntry(
                tensors=tensors,
                file_sha256=None,
                same_as_aggregate=latest.round,
                is_stored=keep and latest.aggregate.is_stored,
            )
        else:
            entry = ArraysEntry(tensors=tensors, file_sha256=None, is_stored=False)
        check_replay(self._recorded.get(server_round), "broadcast", entry)
        if entry.same_as_aggregate is None and keep:
            entry = self._write(server_round, "broadcast", arrays, tensors)
        return entry

    def _aggregate(self, server_round: int, arrays: Arrays) -> ArraysEntry:
        tensors = describe(arrays)
        entry = ArraysEntry(tensors=tensors, file_sha256=None, is_stored=False)
        check_replay(self._recorded.get(server_round), "aggregate", entry)
        return self._write(server_round, "aggregate", arrays, tensors)

    def _drop_latest(self) -> None:
        """Of models that nobody asked for, only the latest is kept: it may be the final one."""
        old = self._latest
        if old is None or old.aggregate is None or self.policy.keeps_models(old.round):
            return
        dropped = old.aggregate.model_copy(update={"file_sha256": None, "is_stored": False})
        index = old.model_copy(update={"aggregate": dropped})
        write_text(_index_file(self.directory, old.round), index.model_dump_json())
        self._path(old.round, "aggregate").unlink(missing_ok=True)

    def _check_replies(self, server_round: int, replies: Sequence[Reply]) -> None:
        """Before anything recorded is written again, compare it with what is there."""
        seen = [
            ReplyEntry(
                client=reply.client,
                arrays=ArraysEntry(tensors=describe(reply.arrays), file_sha256=None)
                if reply.arrays is not None and _is_storable(reply.arrays)
                else None,
                num_examples=_num_examples(reply),
                metrics={},
                is_finite=None,
                error_code=reply.error_code,
            )
            for reply in replies
        ]
        check_replay(self._recorded.get(server_round), "replies", seen)

    def _reply(self, server_round: int, reply: Reply) -> ReplyEntry:
        entry, finite = None, None
        keep = reply.arrays is not None and self.policy.keeps_reply(server_round, reply.client)
        if keep and reply.arrays is not None and not self.is_full:
            try:
                entry = self._write(server_round, f"client_{reply.client}", reply.arrays)
                finite = all(is_finite(a) for a in reply.arrays.values())
            except (SafetensorError, ValueError, TypeError) as error:  # not OSError: a disk's fault
                why = f"its arrays cannot be stored: {error}"
                reply = replace(reply, arrays=None, error_code=UNSTORABLE, error_reason=why)
        return ReplyEntry(
            client=reply.client,
            arrays=entry,
            num_examples=_num_examples(reply),
            metrics={clean_text(k): plain_metric(v) for k, v in reply.metrics.items()},
            is_finite=finite if entry is not None or reply.arrays is not None else False,
            was_left_out=reply.arrays is not None and entry is None,
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
        """Write one file. Digests are computed later unless `tensors` are given."""
        path = self._path(server_round, party)
        self._bytes += write_arrays(path, arrays)
        return ArraysEntry(
            tensors=describe(arrays, digests=False) if tensors is None else tensors,
            file_sha256=None if tensors is None else sha256_file(path),
        )

    def _digest(self, server_round: int, arrays: Mapping[int, Arrays]) -> None:
        """In the background: digests of replies that are already on disk."""
        index = self._current(server_round)
        replies = []
        for reply in index.replies:
            entry = reply.arrays
            if entry is not None:
                digested = ArraysEntry(
                    tensors=describe(arrays[reply.client]),
                    file_sha256=sha256_file(self._path(server_round, f"client_{reply.client}")),
                )
                reply = reply.model_copy(update={"arrays": digested})
            replies.append(reply)
        self._update(server_round, replies=replies)

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
        recorded = self._recorded.get(index.round)
        if recorded is not None and _STATES.index(recorded.state) > _STATES.index(index.state):
            return  # a replay that has not yet come as far as what is recorded
        write_text(_index_file(self.directory, index.round), index.model_dump_json())

    def _path(self, server_round: int, party: str) -> Path:
        return round_directory(self.directory, server_round) / f"{party}.safetensors"


def describe(arrays: Arrays, *, digests: bool = True) -> dict[str, TensorEntry]:
    """dtype, shape and, unless it is left for later, digest of each array."""
    return {
        name: TensorEntry(
            dtype=str(a.dtype.newbyteorder("=")),
            shape=list(a.shape),
            sha256=sha256_array(a) if digests else None,
        )
        for name, a in arrays.items()
    }


def round_directory(trace: Path, server_round: int) -> Path:
    """Where a round of a trace stands."""
    return trace / f"round_{server_round:04d}"


def is_finite(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    """Whether an array holds neither NaN nor infinities."""
    return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())


def _num_examples(reply: Reply) -> float | int | str | list[float | int | str] | None:
    return plain_metric(reply.metrics[NUM_EXAMPLES]) if NUM_EXAMPLES in reply.metrics else None


def _is_storable(arrays: Arrays) -> bool:
    return all(array.dtype.kind in "biuf" for array in arrays.values())


def _index_file(trace: Path, server_round: int) -> Path:
    return round_directory(trace, server_round) / "round.json"

"""Writing a trace: bytes are on disk before the strategy aggregates.

What is written survives the death of the process. It is not forced through the disk's cache, so
a power cut may cost the round in progress. Digests of replies are computed in the background,
while the strategy aggregates.

A disk that refuses to write costs what it refuses: what else can be written is written first, the
index says what is not there, and then the error is raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from fl_audit.errors import TraceError, clean_text
from fl_audit.files import Arrays, arrays_bytes, private_directory, sha256_file
from fl_audit.trace.index import (
    ArraysEntry,
    ReplyEntry,
    RoundIndex,
    SentEntry,
    plain_metric,
)
from fl_audit.trace.index_writer import IndexWriter
from fl_audit.trace.layout import SentTo, arrays_file, index_file, round_directory
from fl_audit.trace.policy import RecordingPolicy
from fl_audit.trace.replay import Part, check_replay, check_replies, check_sent
from fl_audit.trace.reply import (
    UNSTORABLE,
    Reply,
    describe,
    faults,
    is_finite,
    num_examples,
)
from fl_audit.trace.store import ArrayStore


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
        self._index = IndexWriter(directory, self._recorded)
        self._latest: RoundIndex | None = None  # the last round with an aggregate
        self._model: dict[str, tuple[int, ...]] = {}  # shapes of what was sent out
        self._own: dict[int, dict[str, tuple[int, ...]]] = {}  # to clients with another model
        self._faults: list[str] = []
        self._store = ArrayStore(self.policy.max_megabytes)
        self._failure: OSError | None = None
        self._digests = ThreadPoolExecutor(1, thread_name_prefix="fl-audit-digests")
        self._pending: Future[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether clients' arrays are no longer stored, because the policy's cap is reached."""
        return self._store.is_full

    def begin_round(
        self,
        server_round: int,
        broadcast: Arrays,
        sampled: Sequence[int],
        sent: Mapping[int, Arrays] | None = None,
    ) -> None:
        """Write the model that goes out, and to whom.

        Args:
            server_round: Round number, from 1.
            broadcast: The global model.
            sampled: Clients that were sent a model.
            sent: Client: what it received, for those that received another model.

        Raises:
            TraceError: If the round was recorded before, by another run.
            ReplayError: If it was recorded before, by this run, and differs.
            OSError: If the disk refused something.
        """
        with self._later():
            self.flush()
            self._index.leave()
        self._index.latest = None  # whatever goes wrong here must not end up in the round before
        self._faults = []
        if index_file(self.directory, server_round).exists() and not self._recorded:
            raise TraceError(
                "trace round",
                server_round,
                "it was recorded before, and a recorded round is never overwritten",
                "Record every run in a directory of its own.",
            )
        private_directory(round_directory(self.directory, server_round))
        self._model = _shapes(broadcast)
        self._own = {client: _shapes(arrays) for client, arrays in (sent or {}).items()}
        entry = self._broadcast(server_round, broadcast)
        own = self._sent(server_round, sent or {})
        self._index.save(
            RoundIndex(
                round=server_round,
                state="sent",
                sampled=list(sampled),
                broadcast=entry,
                sent=own,
            )
        )
        self._raise_failure()

    def add_replies(self, server_round: int, replies: Sequence[Reply]) -> None:
        """Write every reply as it arrived; when this returns, the round is safe.

        A reply that no file can hold is recorded as an error of that client.

        Raises:
            TraceError: If the round was not begun, or a client stands there twice.
            ReplayError: If the round was recorded before, by this run, and differs.
            OSError: If the disk refused something.
        """
        self._index.current(server_round)
        counts = Counter(reply.client for reply in replies)
        twice = sorted(client for client, count in counts.items() if count > 1)
        if twice:
            raise TraceError(
                f"replies of round {server_round}",
                twice,
                "these clients replied more than once",
                "Give every node a client number of its own.",
            )
        check_replies(self._recorded.get(server_round), replies)
        entries = [self._reply(server_round, reply) for reply in replies]
        self._faults = [
            f"client {reply.client} {line}"
            for reply, entry in zip(replies, entries, strict=True)
            if entry.error_code is None
            for line in faults(reply, self._own.get(reply.client, self._model))
        ]
        with self._later():
            self._index.update(server_round, state="replied", replies=entries)
        arrays = {reply.client: reply.arrays for reply in replies if reply.arrays is not None}
        self._pending = self._digests.submit(self._digest, server_round, arrays)
        self._raise_failure()

    def unfit_replies(self) -> list[str]:
        """One line for each thing that is wrong with a reply of this round, errors apart."""
        lines = []
        latest = self._index.latest
        for reply in [] if latest is None else latest.replies:
            if reply.error_code == UNSTORABLE:
                lines.append(f"client {reply.client}: {reply.error_reason}")
            elif reply.is_finite is False and reply.arrays is not None:
                lines.append(f"client {reply.client} sent NaN or infinite values")
        return lines + self._faults

    def end_round(
        self, server_round: int, aggregate: Arrays | None, metrics: Mapping[str, object]
    ) -> None:
        """Write what the strategy made of the replies (None: it kept the old model).

        Raises:
            TraceError: If the round was not begun.
            ReplayError: If the round was recorded before, by this run, and differs.
            OSError: If the disk refused something.
        """
        with self._later():
            self.flush()
        self._index.current(server_round)
        entry = None
        if aggregate is not None and self.policy.record != "none":
            entry = self._aggregate(server_round, aggregate)
        plain = {clean_text(name): plain_metric(value) for name, value in metrics.items()}
        with self._later():
            self._index.update(server_round, state="aggregated", aggregate=entry, metrics=plain)
        if entry is not None:
            with self._later():
                self._drop_latest()
            self._latest = self._index.latest
        self._raise_failure()

    def flush(self) -> None:
        """Wait until every digest is on disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Write what is pending, and end the background thread.

        Raises:
            OSError: If the disk refused something.
        """
        try:
            with self._later():
                self.flush()
            with self._later():
                self._index.close()
        finally:
            self._digests.shutdown()
        self._raise_failure()

    def _broadcast(self, server_round: int, arrays: Arrays) -> ArraysEntry | None:
        if self.policy.record == "none":
            return None
        tensors = describe(arrays)
        keep = self.policy.keeps_models(server_round)
        latest = self._latest
        if latest is not None and latest.aggregate and latest.aggregate.tensors == tensors:
            stays = keep and latest.aggregate.is_stored and self._store.settle_last()
            if stays:
                self._latest = None  # this round refers to its file, which therefore stays
            return self._checked(
                server_round,
                "broadcast",
                ArraysEntry(
                    tensors=tensors,
                    file_sha256=None,
                    same_as_aggregate=latest.round,
                    is_stored=stays,
                ),
            )
        entry = ArraysEntry(tensors=tensors, file_sha256=None, is_stored=False)
        self._checked(server_round, "broadcast", entry)
        if keep and not self._store.is_full:
            path = arrays_file(self.directory, server_round, "broadcast")
            with self._later():
                if self._store.keep(path, arrays_bytes(arrays), is_model=True):
                    return _stored(entry, path)
        return entry

    def _sent(self, server_round: int, sent: Mapping[int, Arrays]) -> list[SentEntry]:
        """Models of single clients: kept, and limited, as their replies are."""
        if self.policy.record == "none":
            return []
        entries = {}
        for client in sorted(sent):
            tensors = describe(sent[client])
            arrays = ArraysEntry(tensors=tensors, file_sha256=None, is_stored=False)
            entries[client] = SentEntry(client=client, arrays=arrays)
        check_sent(self._recorded.get(server_round), list(entries.values()))
        stored: list[SentEntry] = []
        for client, entry in entries.items():
            if not self.policy.keeps_reply(server_round, client):
                continue
            same = next((s for s in stored if s.arrays.tensors == entry.arrays.tensors), None)
            if same is not None:
                arrays = entry.arrays.model_copy(update={"is_stored": True})
                update = {"arrays": arrays, "same_as_client": same.client}
                entries[client] = entry.model_copy(update=update)
                continue
            path = arrays_file(self.directory, server_round, SentTo(client))
            with self._later():
                if not self._store.is_full and self._store.keep(path, arrays_bytes(sent[client])):
                    arrays = _stored(entry.arrays, path)
                    entries[client] = entry.model_copy(update={"arrays": arrays})
                    stored.append(entries[client])
        return list(entries.values())

    def _aggregate(self, server_round: int, arrays: Arrays) -> ArraysEntry:
        entry = ArraysEntry(tensors=describe(arrays), file_sha256=None, is_stored=False)
        self._checked(server_round, "aggregate", entry)
        data = arrays_bytes(arrays)
        path = arrays_file(self.directory, server_round, "aggregate")
        with self._later():
            if not self._store.fits(len(data)):
                self._drop_latest()  # before, not after: both would be more than the cap
            if self._store.keep_last(path, data):
                return _stored(entry, path)
        return entry

    def _checked(self, server_round: int, part: Part, entry: ArraysEntry) -> ArraysEntry:
        check_replay(self._recorded.get(server_round), part, entry)
        return entry

    def _drop_latest(self) -> None:
        """Of models that nobody asked for, only the latest is kept: it may be the final one."""
        old, self._latest = self._latest, None
        if old is None or old.aggregate is None or not old.aggregate.is_stored:
            return
        if self.policy.keeps_models(old.round) and not self._store.is_full:
            return
        dropped = old.aggregate.model_copy(update={"file_sha256": None, "is_stored": False})
        self._index.amend(old.model_copy(update={"aggregate": dropped}))
        self._store.remove(arrays_file(self.directory, old.round, "aggregate"))

    def _reply(self, server_round: int, reply: Reply) -> ReplyEntry:
        entry, finite = None, None
        keep = self.policy.keeps_reply(server_round, reply.client) and not self._store.is_full
        if keep and reply.arrays is not None:
            path = arrays_file(self.directory, server_round, reply.client)
            try:
                with self._later():
                    if self._store.keep(path, arrays_bytes(reply.arrays)):
                        tensors = describe(reply.arrays, digests=False)
                        entry = ArraysEntry(tensors=tensors, file_sha256=None)
                        finite = all(is_finite(a) for a in reply.arrays.values())
            except (SafetensorError, ValueError, TypeError) as error:
                why = f"its arrays cannot be stored: {error}"
                reply = replace(reply, arrays=None, error_code=UNSTORABLE, error_reason=why)
        return ReplyEntry(
            client=reply.client,
            arrays=entry,
            num_examples=num_examples(reply),
            metrics={clean_text(k): plain_metric(v) for k, v in reply.metrics.items()},
            is_finite=finite if entry is not None or reply.arrays is not None else False,
            was_left_out=reply.arrays is not None and entry is None,
            error_code=reply.error_code,
            error_reason=None if reply.error_reason is None else clean_text(reply.error_reason),
        )

    def _digest(self, server_round: int, arrays: Mapping[int, Arrays]) -> None:
        """In the background: digests of replies that are already on disk."""
        index = self._index.current(server_round)
        replies = []
        for reply in index.replies:
            entry = reply.arrays
            if entry is not None:
                digested = ArraysEntry(
                    tensors=describe(arrays[reply.client]),
                    file_sha256=sha256_file(
                        arrays_file(self.directory, server_round, reply.client)
                    ),
                )
                reply = reply.model_copy(update={"arrays": digested})
            replies.append(reply)
        self._index.update(server_round, replies=replies)

    @contextmanager
    def _later(self) -> Iterator[None]:
        """Keep an error of the disk until everything else is written."""
        try:
            yield
        except OSError as error:
            self._failure = self._failure or error

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _stored(entry: ArraysEntry, path: Path) -> ArraysEntry:
    return entry.model_copy(update={"is_stored": True, "file_sha256": sha256_file(path)})

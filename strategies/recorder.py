"""Recording that never touches training: what goes wrong here is noted, and training goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from flwr.app import ArrayRecord, Message, MetricRecord

from fl_audit.errors import clean_text
from fl_audit.run_directory import Problem, RunDirectory, RunManifest
from fl_audit.trace import Reply, Trace, TraceWriter
from fl_audit.trace.digests import digest_of_digests
from fl_audit.trace.replay import ReplayError
from fl_audit.verify import RECORDING
from strategies.messages import arrays_of, sent_models, to_reply

logger = logging.getLogger("fl_audit")


class Recorder:
    """Writes what a server sees into a run directory.

    Args:
        run: An empty run directory.
        manifest: What is being recorded; written at once and after every problem.
        clients: Node id -> partition id, where known. Other nodes are recorded by node id.
        resume: `run` was interrupted: its rounds are replayed, and must come out the same.
    """

    def __init__(
        self,
        run: RunDirectory,
        manifest: RunManifest,
        *,
        clients: Mapping[int, int],
        resume: bool = False,
    ) -> None:
        self.run = run
        self.manifest = manifest
        self._clients = dict(clients)
        self._sampled: list[int] = []
        self._was_full = False
        self._was_refused = False
        recorded = {}
        if resume and run.trace.is_dir():
            trace = Trace.open(run.trace)
            recorded = {number: trace.round(number) for number in trace.rounds}
        self._writer = TraceWriter(run.trace, manifest.recording, recorded=recorded)
        run.write_manifest(manifest)

    @property
    def problems(self) -> list[Problem]:
        """What went wrong so far, recording and attacks included."""
        return self.manifest.problems

    def sent(self, server_round: int, arrays: ArrayRecord, messages: Sequence[Message]) -> None:
        """Record the global model, its recipients, and what they received in its place."""
        with self.guard(RECORDING, server_round):
            self._sampled = [self._client(m.metadata.dst_node_id) for m in messages]
            broadcast, others = sent_models(arrays, messages)
            own = {self._sampled[place]: model for place, model in others.items()}
            self._writer.begin_round(server_round, broadcast, self._sampled, own)
        self._note_cap(server_round)

    def received(self, server_round: int, messages: Sequence[Message]) -> None:
        """Record every reply; on disk when this returns."""
        replies: list[Reply] = []
        with self.guard(RECORDING, server_round):
            replies += [to_reply(m, self._client(m.metadata.src_node_id)) for m in messages]
            self._writer.add_replies(server_round, replies)
        with self.guard(RECORDING, server_round):
            self._note_clients(server_round, replies)
            answered = {self._client(m.metadata.src_node_id) for m in messages}
            silent = sorted(set(self._sampled) - answered)
            if silent:
                self.note("client", server_round, f"clients {silent} never answered")
        self._note_cap(server_round)

    def aggregated(
        self, server_round: int, arrays: ArrayRecord | None, metrics: MetricRecord | None
    ) -> None:
        """Record what the strategy made of the replies."""
        with self.guard(RECORDING, server_round):
            aggregate = None if arrays is None else arrays_of(arrays)
            self._writer.end_round(server_round, aggregate, dict(metrics or {}))
        self._note_cap(server_round)

    def flush(self) -> None:
        """Wait until all digests are on disk."""
        self._writer.flush()

    def finish(self, state: Literal["done", "interrupted", "failed"]) -> None:
        """Write how the run ended; nothing is recorded afterwards."""
        with self.guard(RECORDING, None):
            self._writer.close()
        self.update(state=state, trace_digest=digest_of_digests(self.run.trace))

    def update(self, **changes: Any) -> None:
        """Change fields of the manifest and write it.

        Where the disk refuses, that is noted, and the next change writes this one, too.
        """
        self.manifest = self.manifest.model_copy(update=changes)
        try:
            self.run.write_manifest(self.manifest)
        except OSError as error:
            logger.warning("cannot write run.json: %s", error)
            if not self._was_refused:  # once: each note would be another change
                self._was_refused = True
                refused = clean_text(f"run.json could not be written for a while: {error}")
                problems = [*self.problems, Problem(where="run.json", message=refused)]
                self.update(problems=problems)

    def note(self, where: str, server_round: int | None, message: str) -> None:
        """Add a problem to the manifest: the report will say it."""
        problem = Problem(where=where, round=server_round, message=clean_text(message))
        logger.warning("%s, round %s: %s", where, server_round, problem.message)
        self.update(problems=[*self.problems, problem])

    @contextmanager
    def guard(self, where: str, server_round: int | None) -> Iterator[None]:
        """Turn an exception into a problem. Ctrl-C passes through, and a replay that differs."""
        try:
            yield
        except ReplayError:
            raise
        except Exception as error:
            logger.debug("%s failed", where, exc_info=True)
            self._note_failure(where, server_round, error)

    def _note_failure(self, where: str, server_round: int | None, error: Exception) -> None:
        message = f"{where} failed: {type(error).__name__}: {error}"
        try:
            self.note(where, server_round, message)
        except Exception:  # whatever it is, training goes on; the log is what is left
            logger.exception("cannot note a problem")

    def _note_clients(self, server_round: int, replies: Sequence[Reply]) -> None:
        """Say what is wrong with replies."""
        for reply in replies:
            if reply.error_code is not None:
                failed = f"client {reply.client} failed: {reply.error_reason}"
                self.note("client", server_round, failed)
        for line in self._writer.unfit_replies():
            self.note("client", server_round, line)

    def _note_cap(self, server_round: int) -> None:
        if self._writer.is_full and not self._was_full:
            self._was_full = True
            cap = self._writer.policy.max_megabytes
            reached = (
                f"the cap of {cap:g} MB is reached: from here on, no client's arrays are stored, "
                "and of models at most the last"
            )
            self.note("recording policy", server_round, reached)

    def _client(self, node_id: int) -> int:
        return self._clients.get(node_id, node_id)


def utc_now() -> str:
    """The time of day for run.json; nothing is computed from it."""
    return datetime.now(UTC).isoformat(timespec="seconds")

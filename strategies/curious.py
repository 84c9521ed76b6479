"""The honest-but-curious server: records what it sees, attacks it, and changes nothing."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from attacks.audit import audit_run
from attacks.requests import AttackRequest, parse_attacks
from fl_audit.errors import InputError
from fl_audit.factories import ModelSpec
from fl_audit.game import given_game, write_game
from fl_audit.local_training import LocalTrainings
from fl_audit.records import Records
from fl_audit.run_directory import RunDirectory, RunManifest, ThreatModelRecord
from fl_audit.threat_model import PRESETS, ThreatModel
from fl_audit.trace import RecordingPolicy
from fl_audit.verify import RECORDING
from fl_audit.versions import versions
from strategies.delegating import DelegatingStrategy
from strategies.recorder import Recorder, utc_now


class CuriousStrategy(DelegatingStrategy):
    """Wrap any Flower strategy, outermost, and record what the server sees.

    Training is not changed: every hook delegates to `inner`, whose arrays, errors and exceptions
    pass through; an exception in recording or attacking is noted in run.json and in the report.
    Replies are on disk before `inner` aggregates them.

    Args:
        inner: The strategy to observe. Wrap a DP wrapper too: `CuriousStrategy(DP(FedAvg()))`
            sees what arrives, `DP(CuriousStrategy(FedAvg()))` only what DP leaves of it.
        trace: A run directory to create, or a `Recorder` that has one.
        attacks: Attacks to run while training goes on: names, or tables of settings.
        every: Run them after every `every` rounds; 0 = never.
        clients: Node id -> partition id, where known.
        model: Which architecture the arrays belong to; attacks that query the model need it.
        local_training: How clients train; inversion needs it.
        threat_model: What attacks may use of the trace.
        recording: What to keep; everything by default.
        seed: Seed of the attacks' generators.
        trust_model: Import a model factory that is not fl-audit's own (live attacks).
        candidates: Records whose membership is in question; membership attacks need them.
        is_member: The truth about them, shape (n,), if known: without it, attacks give scores and
            no figures.
        auxiliary: Records of the same distribution that the adversary has of its own.

    Raises:
        InputError: If `inner` drives its own rounds, an attack is unknown, or `trace` is taken.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        trace: str | Path | Recorder,
        attacks: Sequence[str | Mapping[str, Any]] = (),
        every: int = 0,
        clients: Mapping[int, int] | None = None,
        model: ModelSpec | None = None,
        local_training: LocalTrainings | None = None,
        threat_model: ThreatModel = PRESETS["curious-server"],
        recording: RecordingPolicy | None = None,
        seed: int = 0,
        trust_model: bool = False,
        candidates: Records | None = None,
        is_member: NDArray[np.bool_] | None = None,
        auxiliary: Records | None = None,
        on_round: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(inner)
        self._every = every
        self._current_round: int | None = None
        self._requests: list[AttackRequest] = parse_attacks(attacks)
        self._trust_model = trust_model
        self._on_round = on_round
        if isinstance(trace, Recorder):
            self.recorder = trace
            return
        if candidates is None:
            _refuse_membership(self._requests)
        manifest = RunManifest(
            title=f"Recording of {type(inner).__name__}",
            created=utc_now(),
            seed=seed,
            engine="unknown",
            versions=versions(),
            threat_model=ThreatModelRecord.of(threat_model),
            strategy={"name": type(inner).__name__},
            defence={"name": "unknown"},
            model=model,
            local_training=local_training,
            recording=recording or RecordingPolicy(),
        )
        run = RunDirectory.create(Path(trace))
        run.lock()
        if candidates is not None:
            write_game(run, *given_game(candidates, is_member, auxiliary))
        self.recorder = Recorder(run, manifest, clients=clients or {})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, then record what goes out."""
        self._current_round = server_round
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        self.recorder.sent(server_round, arrays, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record the replies, delegate, record the outcome, and attack if it is time."""
        messages = list(replies)
        self.recorder.received(server_round, messages)
        try:
            arrays, metrics = self.inner.aggregate_train(server_round, messages)
        except BaseException:
            with self.recorder.guard(RECORDING, server_round):
                self.recorder.flush()  # what made the strategy fail is worth its digests
            raise
        self.recorder.aggregated(server_round, arrays, metrics)
        if self._requests and self._every and server_round % self._every == 0:
            self._attack(server_round)
        if self._on_round is not None:
            self._on_round(server_round)
        return arrays, metrics

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Flower's own loop of rounds, which calls the hooks above; run.json says how it ended."""
        given = inspect.signature(super().start).bind(grid, *args, **kwargs)
        given.apply_defaults()
        if self.recorder.manifest.planned_rounds is None:
            self.recorder.update(planned_rounds=given.arguments.get("num_rounds"))
        try:
            result = super().start(grid, *args, **kwargs)
        except KeyboardInterrupt:
            self.recorder.finish("interrupted")
            raise
        except BaseException as error:
            why = f"the rounds ended: {type(error).__name__}: {error}"
            self.recorder.note("federation", self._current_round, why)
            self.recorder.finish("failed")
            raise
        self.recorder.finish("done")
        return result

    def summary(self) -> None:
        """Delegate, and say that this run is recorded."""
        self.inner.summary()
        logging.getLogger("fl_audit").info("recording to %s", self.recorder.run.path)

    def _attack(self, server_round: int) -> None:
        with self.recorder.guard("attack", server_round):
            results = audit_run(
                self.recorder.run.path,
                attacks=self._requests,
                up_to=server_round,
                trust_model=self._trust_model,
                folder=f"live/round_{server_round:04d}",
            )
            for result in results:
                if result.record.kind == "unavailable":
                    self.recorder.note("attack", server_round, result.record.reason)


def _refuse_membership(requests: Sequence[AttackRequest]) -> None:
    for request in requests:
        if request.spec.kind == "membership":
            raise InputError(
                f"attack {request.label!r}",
                "no candidates",
                "a membership attack needs records to ask about",
                "Give CuriousStrategy(candidates=Records(ids, inputs, labels)).",
            )

"""Running attacks on a trace and scoring what they say. The only file here that touches files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from attacks.federated.rehearsal import Rehearsals, Rehearser
from attacks.reconstruction_pictures import write_pictures
from attacks.registry import known_attacks, load_attack
from attacks.requests import AttackRequest, check_attacks, parse_attacks
from attacks.runner import Runner
from attacks.shadows.lab import Lab
from attacks.shadows.store import Store
from attacks.shadows.trace import central_trainer, view_labs, with_small_null
from attacks.shadows.trainers import Trainer
from fl_audit.errors import TraceError
from fl_audit.factories import ModelSpec
from fl_audit.files import (
    private_directory,
    sha256_array,
    write_arrays,
    write_bytes,
    write_text,
)
from fl_audit.game import (
    KINDS,
    GameTruth,
    MembershipGame,
    has_game,
    has_truth,
    read_game,
    read_truth,
)
from fl_audit.local_training import LocalTrainings
from fl_audit.records import Records
from fl_audit.report.build import read_results
from fl_audit.results import (
    AnyAttackRecord,
    AttackResult,
    EstimateResult,
    MembershipResult,
    ReconstructionResult,
)
from fl_audit.run_directory import RunDirectory, RunManifest
from fl_audit.threat_model import Knowledge, Observation, ThreatModel, flag_names
from fl_audit.trace import Trace, TraceView
from fl_audit.trace.view import ModelBuilder
from fl_audit.verify import excused_rounds, missing_last_rounds
from fl_audit.who_counts import members_left_out, scored_candidates

logger = logging.getLogger("fl_audit")
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


def audit_trace(
    trace: Trace | str | Path,
    *,
    attacks: Sequence[str | Mapping[str, Any] | AttackRequest],
    threat_model: ThreatModel,
    game: MembershipGame | None = None,
    truth: GameTruth | None = None,
    model: ModelBuilder | None = None,
    local_training: LocalTrainings | None = None,
    seed: int,
    up_to: int | None = None,
    last_round: int | None = None,
    averages: bool = True,
    device: str = "cpu",
    trainer: Trainer | None = None,
    train_size: int | None = None,
    store: Store | None = None,
    rehearser: Rehearser | None = None,
    rehearsal_folder: Path | None = None,
    progress: Progress | None = None,
    on_result: Callable[[AttackResult], None] | None = None,
) -> list[AttackResult]:
    """Run attacks on a trace; score them where the truth is known.

    An attack that fails gives an `UnavailableResult` with the reason; the others go on.

    Args:
        trace: A trace, or the path of its `trace/` folder.
        attacks: Names, or tables with `name`, `label` and settings.
        threat_model: What the attacks may use.
        game: Candidates for membership attacks, and auxiliary records.
        truth: What only the scorer may know. Attacks never see it.
        model: Builds the architecture.
        local_training: How clients train, if known.
        seed: Each attack's generator depends on this and the attack's label.
        up_to: Last round to use.
        last_round: The round that made the final model, if the run is done.
        averages: Whether the strategy's step is the mean of the updates, as FedAvg's is.
        trainer: Trains shadow models; without one, attacks that need them are unavailable.
        train_size: Records that the target was trained on; by default half of the candidates.
        store: Where shadow models and answers are kept.
        rehearser: Plays the federation again on known records; without one, attacks that learn
            from shadow federations are unavailable.
        rehearsal_folder: Where shadow federations are kept; a temporary folder by default.
        on_result: Called with each result as soon as it is there.

    Raises:
        UnknownNameError, InputError: If an attack or a setting is unknown.
        ObservationError: If the threat model does not grant what an attack needs.
    """
    trace = trace if isinstance(trace, Trace) else Trace.open(Path(trace))
    requests = parse_attacks(attacks)
    check_attacks(requests, threat_model)

    def view_of(seen: Trace) -> TraceView:
        return TraceView(
            seen,
            threat_model,
            model=model,
            local_training=local_training,
            up_to=up_to,
            last_round=last_round,
            averages=averages,
        )

    view = view_of(trace)
    knows_aux = Knowledge.AUXILIARY_DATA in threat_model.knows
    auxiliary = game.auxiliary if game is not None and knows_aux else None
    model_game, model_truth = (None, None) if game is None else with_small_null(game, truth)

    @cache
    def labs() -> Mapping[str, Lab]:  # built by the first attack on the model that runs
        if model_game is None or model is None:
            return {}
        return view_labs(
            view,
            model_game,
            trainer=trainer,
            seed=seed,
            device=device,
            store=store,
            train_size=train_size,
            progress=progress,
        )

    rehearsed: dict[str, Rehearsals] = {}

    def rehearse(candidates: Records, asked: NDArray[np.int64] | None) -> Rehearsals | None:
        if rehearser is None:
            return None
        key = sha256_array(candidates.ids)
        if key not in rehearsed:  # one set of shadow federations for all attacks
            rehearsed[key] = Rehearsals(
                rehearser,
                candidates,
                asked=asked,
                auxiliary=auxiliary,
                view_of=view_of,
                seed=seed,
                folder=rehearsal_folder,
            )
        return rehearsed[key]

    @cache
    def in_round(kept_only: bool, server_round: int) -> NDArray[np.bool_]:
        assert game is not None  # called where there is a truth
        assert truth is not None
        return scored_candidates(game, truth, trace, only=server_round, kept_only=kept_only)

    results = []
    for number, request in enumerate(requests):
        if progress is not None:
            progress(request.label, number, len(requests))
        run = Runner(request, view, auxiliary, seed, device, labs, rehearse, progress)
        played = (model_game, model_truth) if request.spec.is_on_model else (game, truth)
        kept_only = Observation.CLIENT_UPDATES in request.spec.sees(threat_model)
        counted = _who_counts(game, truth, trace, up_to=up_to, kept_only=kept_only)
        result = run(*played, *counted, None if truth is None else partial(in_round, kept_only))
        results.append(result)
        if on_result is not None:
            on_result(result)
    if progress is not None and requests:
        progress("attacks done", len(requests), len(requests))
    return results


def _who_counts(
    game: MembershipGame | None,
    truth: GameTruth | None,
    trace: Trace,
    *,
    up_to: int | None,
    kept_only: bool,
) -> tuple[NDArray[np.bool_] | None, dict[str, int]]:
    """Candidates that count for this attack, and why members do not: updates must be there."""
    if game is None or truth is None:
        return None, {}
    return (
        scored_candidates(game, truth, trace, up_to=up_to, kept_only=kept_only),
        members_left_out(truth, trace, up_to=up_to, kept_only=kept_only),
    )


def audit_run(
    path: str | Path,
    *,
    attacks: Sequence[str | Mapping[str, Any] | AttackRequest],
    model: ModelSpec | None = None,
    trust_model: bool = False,
    up_to: int | None = None,
    device: str = "cpu",
    folder: str = "",
    keep_unavailable: bool = True,
    trainer: Trainer | None = None,
    rehearser: Rehearser | None = None,
    progress: Progress | None = None,
) -> list[AttackResult]:
    """Run attacks on a run directory and save their results in its `results/`.

    Args:
        path: A run directory.
        attacks: Names, or tables with `name`, `label` and settings.
        model: The architecture, if run.json names none or is not to be believed.
        trust_model: Import the factory that run.json names, even if it is not fl-audit's own.
        up_to: Last round to use.
        folder: Where in `results/`.
        keep_unavailable: Save attacks that gave no number, too, so that the report names them.
        trainer: Trains shadow models; by default centrally, with the clients' local training.
        rehearser: Plays shadow federations, for attacks that learn from their traces.

    Raises:
        As `audit_trace`; RunDirectoryError or TraceError if the run cannot be read.
    """
    run = RunDirectory.open(Path(path))
    manifest = run.read_manifest()
    spec, trusted = (model, True) if model is not None else (manifest.model, trust_model)
    played = has_game(run)
    target = private_directory(run.results)
    for part in Path(folder).parts:
        target = private_directory(target / part)

    def save(result: AttackResult) -> None:
        # a result that stands there under this label is not true any more
        stands = (target / f"{result.record.label}.json").exists()
        if keep_unavailable or stands or result.record.kind != "unavailable":
            save_result(result, target)

    trace = run.open_trace()
    _refuse_missing_rounds(manifest, trace, up_to)
    is_done = manifest.state == "done" and up_to is None
    builder = None if spec is None else spec.builder(trusted=trusted)
    if trainer is None and builder is not None and manifest.local_training is not None:
        rounds = max(trace.rounds, default=1) if up_to is None else up_to
        trainer = central_trainer(builder, manifest.local_training.default, rounds, device=device)
    return audit_trace(
        trace,
        attacks=attacks,
        threat_model=manifest.threat_model.threat_model(),
        game=read_game(run) if played else None,
        truth=read_truth(run) if has_truth(run) else None,
        model=builder,
        local_training=manifest.local_training,
        seed=manifest.seed,
        up_to=up_to,
        last_round=manifest.planned_rounds if is_done else None,
        averages=_averages(manifest),
        device=device,
        trainer=trainer,
        train_size=_num_training(manifest),
        store=Store(run.path / "shadows") if _has_shadows(attacks) else None,
        rehearser=rehearser,
        rehearsal_folder=run.path / "shadows" / "federations",
        progress=progress,
        on_result=save,
    )


def _averages(manifest: RunManifest) -> bool:
    """Whether the strategy's step is the mean of the updates, as far as the run says."""
    strategy, defence = manifest.strategy.get("name"), manifest.defence.get("name")
    return strategy in ("FedAvg", "FedProx") and defence in ("none", "unknown")


def _num_training(manifest: RunManifest) -> int | None:
    """How many records all clients hold together, where the run says so."""
    counts = manifest.data.get("examples_per_client")
    if not isinstance(counts, list) or not all(isinstance(count, int) for count in counts):
        return None
    return sum(count for count in counts if isinstance(count, int))


def _has_shadows(attacks: Sequence[str | Mapping[str, Any] | AttackRequest]) -> bool:
    """Whether an attack trains models, which are kept in the run directory."""
    return any(hasattr(r.settings, "num_shadow_models") for r in parse_attacks(attacks))


def _refuse_missing_rounds(manifest: RunManifest, trace: Trace, up_to: int | None) -> None:
    """A finished run without its last rounds has an older model in place of the final one."""
    missing = set(missing_last_rounds(manifest, trace, up_to=up_to)) - excused_rounds(manifest)
    if missing:
        raise TraceError(
            "trace",
            sorted(missing),
            "run.json says that the run is done, and these last rounds are missing or incomplete",
            "Restore them from a copy, or record the run again: `fl-audit trace verify` says more.",
        )


def fresh_labels(run: RunDirectory, requests: Sequence[AttackRequest]) -> list[AttackRequest]:
    """The same requests, relabelled where another result of the run has the label.

    A result of the same attack with the same settings is kept under its label: it is replaced by
    its equal. Any other result is never overwritten.
    """
    existing = {record.label: record for record in read_results(run)}
    fresh: list[AttackRequest] = []
    for request in requests:
        label, number = request.label, 2
        while label in {r.label for r in fresh} or (
            label in existing and not _is_same(existing[label], request)
        ):
            label, number = f"{request.label}-{number}", number + 1
        fresh.append(AttackRequest(label, request.spec, request.settings))
    return fresh


def _is_same(record: AnyAttackRecord, request: AttackRequest) -> bool:
    settings = request.settings.model_dump(mode="json")
    return record.attack == request.spec.name and record.settings == settings


def save_result(result: AttackResult, folder: Path) -> None:
    """Write a result's record as JSON, and what it was computed from beside it."""
    record = result.record
    if isinstance(result, MembershipResult):
        write_bytes(folder / result.record.scores_file, scores_table(result))
    elif isinstance(result, EstimateResult):
        write_bytes(folder / result.record.table_file, _parquet(result.table))
    elif isinstance(result, ReconstructionResult) and result.record.arrays_file is not None:
        write_arrays(folder / result.record.arrays_file, result.arrays)
        write_pictures(result.arrays, folder / record.label)
    write_text(folder / f"{record.label}.json", record.model_dump_json(indent=1))


def not_tested(done: Sequence[str], *, on_model: bool = False) -> list[dict[str, str]]:
    """Known attacks that are not in `done`, with what they would need: for the report.

    Args:
        on_model: Only those on a trained model.
    """
    missing = []
    for name in sorted(set(known_attacks()) - set(done)):
        spec = load_attack(name)
        if on_model and not spec.is_on_model:
            continue
        needs = ", ".join(flag_names(spec.requires) + flag_names(spec.knows))
        missing.append({"attack": name, "summary": spec.summary, "needs": needs})
    return missing


def scores_table(result: MembershipResult) -> bytes:
    """Every record with its score, as parquet: from it all figures can be computed again."""
    columns: dict[str, Any] = {
        "id": result.candidates.ids,
        "label": result.candidates.labels,
        "score": result.scores,
    }
    if result.probabilities is not None:
        columns["probability"] = result.probabilities
        columns["decision"] = result.called
    if result.accuracy is not None:
        columns["accuracy"] = result.accuracy
    if result.kinds is not None:
        columns["kind"] = [KINDS[kind] for kind in result.kinds]
    if result.is_member is not None:
        columns["is_member"] = result.is_member
        columns["is_scored"] = result.is_scored
    return _parquet(columns)


def _parquet(columns: Mapping[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink)
    table: bytes = sink.getvalue().to_pybytes()
    return table

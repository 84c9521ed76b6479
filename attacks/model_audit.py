"""Auditing a trained model: who can tell which records it was trained on?"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from attacks.audit import save_result
from attacks.devices import choose_device
from attacks.games import GAMES, Game, play
from attacks.model_report import (
    IDENTITY,
    MODEL_ENGINE,
    ModelAudit,
    game_of,
    model_manifest,
    model_report,
    truth_of,
)
from attacks.population import TaskName, rows_of, to_records
from attacks.recognition import (
    PROBABILITIES_NOTE,
    AskedTrainer,
    answering_logs,
    as_logits,
    check_same_architecture,
    gives_probabilities,
    model_builder,
    num_outputs,
    recognise,
    recognise_task,
)
from attacks.requests import AttackRequest, Wanted, check_attacks, parse_attacks
from attacks.runner import Runner
from attacks.shadows.lab import Lab
from attacks.shadows.target import Target
from attacks.shadows.trainers import DefaultTrainer, FunctionTrainer, Trainer
from attacks.shadows.training import Build, TrainingConfig
from attacks.shadows.workshop import Workshop
from attacks.split import Split, split_population
from fl_audit.errors import InputError, ObservationError, UnknownNameError
from fl_audit.factories import load_attribute
from fl_audit.files import private_directory, write_text
from fl_audit.game import write_game
from fl_audit.records import Records
from fl_audit.report.model import AuditReport
from fl_audit.results import AttackResult
from fl_audit.run_directory import RunDirectory, RunManifest
from fl_audit.threat_model import PRESETS, Observation, ThreatModel
from fl_audit.trace import TraceView

Progress = Callable[[str, int, int], None]
DEFAULT_ATTACKS = ("population", "rmia", "lira")
_DEFAULT_TARGETS = 8


@dataclass(frozen=True, slots=True, eq=False)
class ModelProxy:
    """Another trained model with known members, to train an attack on ("model A").

    Attributes:
        model: A torch module, or a callable, as in `audit_model`.
        population: Its records, disjoint from the audited ones.
        members: Rows of them that it was trained on.
    """

    model: Any
    population: Any
    members: Any


def audit_model(
    model: Any,
    population: Any,
    *,
    members: Any,
    non_members: Any = None,
    auxiliary: Any = None,
    train_fn: Callable[..., Any] | str | None = None,
    training: TrainingConfig | Mapping[str, Any] | None = None,
    model_factory: Callable[[], Any] | str | None = None,
    attacks: Wanted | Sequence[Wanted] = DEFAULT_ATTACKS,
    game: Game = "model",
    num_targets: int | None = None,
    records: Sequence[int] | None = None,
    task: TaskName | None = None,
    proxy: ModelProxy | None = None,
    train_size: int | None = None,
    threat_model: ThreatModel | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    title: str = "Audit of a trained model",
    workers: int | None = None,
    ray_address: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int,
    progress: Progress | None = None,
) -> AuditReport:
    """Attack a trained model with membership inference, and report what it gives away.

    Args:
        model: A torch module (evaluated in eval mode, whatever its mode) that answers logits or,
            said in the notes, probabilities. Or, for black-box attacks only, any callable from
            inputs (n, ...) to class probabilities (n, c) or a regression's numbers (n,), or an
            object with such a `predict_proba` or `predict`.
        population: (inputs, labels) as arrays or tensors, a torch `Dataset` of such pairs (read
            in blocks if it is larger than memory), or `Records`. Labels of an integer type are
            classes; others are regression targets of a model with one output, and classes of a
            model with more.
        members: Rows of the population that the model was trained on, or a mask.
        non_members: Rows that it was not trained on. By default half of the other records, at most
            as many as members; the rest is auxiliary.
        auxiliary: Rows of the population, or a second data set: what the adversary has. Shadow,
            reference and distilled models of mode "offline" are trained on nothing else.
        train_fn: `train(model, dataset, *, seed) -> model`, or its "module:function".
        training: Instead of it, a table for the default trainer (see `TrainingConfig`).
        model_factory: Builds a fresh module; needed where layers cannot be initialised again.
        attacks: Names, or tables with `name`, `label` and settings; or one alone.
        game: Whose privacy loss: of the "model", of the "algorithm" (over models trained on random
            halves), of single records over such models ("record"), or with and without the record
            and all else fixed ("leave-one-out").
        num_targets: Models that the last three games look at; 8 if not given.
        records: Members whose loss the game "leave-one-out" measures; by default three by lot.
        task: "classification" or "regression"; decided by labels and model if not given.
        proxy: Another model with known members, for attacks with train_on = "proxy".
        train_size: How many records the model was trained on; by default as many as `members`.
        threat_model: By default what a holder of the module, or of its answers, sees and knows.
        out: Run directory to write: results, tables of scores, stored shadow models, from which
            an interrupted audit goes on when it is started again with the same arguments.
        overwrite: Delete a run that stands at `out`.
        workers: Processes that train shadow models; as many as cores by default.
        ray_address: "host:port" of a Ray cluster to train them on.
        device: Where models run.
        seed: Of everything that is drawn.
        progress: Called with (what, done, total).

    Returns:
        The report; `report.save(folder)` writes it as JSON and HTML, with tables of scores.

    Raises:
        InputError: If something does not fit together: which, and what to do.
    """
    if game not in GAMES:
        raise UnknownNameError("game", game, GAMES)
    _check_numbers(train_size=train_size, workers=workers, seed=seed)
    _check_game(game, num_targets, records)
    if proxy is not None and not isinstance(proxy, ModelProxy):
        raise InputError(
            "proxy", proxy, "is no ModelProxy", "Give ModelProxy(model, population, members)."
        )
    requests = parse_attacks(attacks)
    sees = threat_model or _default_threat_model(model)
    _check_white_box(requests, model)
    check_attacks(requests, sees)
    chosen = choose_device(device)
    if out is not None:
        RunDirectory.check(Path(out), overwrite=overwrite)
    start = time.perf_counter()
    # all that the input can be wrong about is found here, before anything at `out` is touched
    audit = _prepare(
        model,
        to_records(population, task=task, width=lambda inputs: num_outputs(model, inputs, chosen)),
        members=members,
        non_members=non_members,
        auxiliary=auxiliary,
        make_trainer=lambda given, build: _trainer(
            train_fn,
            training,
            given,
            build,
            workers=workers,
            ray_address=ray_address,
            device=chosen,
        ),
        model_factory=model_factory,
        train_size=train_size,
        seed=seed,
        device=chosen,
        progress=progress,
        task=task,
    )
    if game == "leave-one-out" and records is not None:
        _check_records(records, audit.split)
    if proxy is not None:
        audit.labs = _with_proxy(audit, proxy, device=chosen, seed=seed)
    manifest = model_manifest(title, seed, sees, audit, model_factory)
    run = None if out is None else _open(Path(out), overwrite=overwrite)
    try:
        if run is not None:
            _begin(run, manifest, audit)
            # after run.json: a folder without one is nobody's, and could not be overwritten
            audit.workshop.store.folder = private_directory(run.path / "shadows")
        results = _attack(
            audit,
            requests,
            sees,
            game=game,
            num_targets=_DEFAULT_TARGETS if num_targets is None else num_targets,
            records=records,
            seed=seed,
            device=chosen,
            run=run,
            progress=progress,
        )
        seconds = {"audit": round(time.perf_counter() - start, 3)}
        manifest = manifest.model_copy(update={"state": "done", "seconds": seconds})
        report = model_report(manifest, audit, requests, results, game)
        if run is not None:
            assert report.model is not None
            write_text(run.model_file, report.model.model_dump_json(indent=1))
            run.write_manifest(manifest)
            report.save(run.path)
        return report
    finally:
        if run is not None:
            run.release()


def _check_numbers(*, train_size: int | None, workers: int | None, seed: int) -> None:
    for name, value, least in (("train_size", train_size, 2), ("workers", workers, 1)):
        if value is not None and value < least:
            raise InputError(name, value, f"must be at least {least}", "Raise it, or leave it out.")
    if seed < 0:
        raise InputError("seed", seed, "must not be negative", "Use 0 or more.")


def _check_game(game: Game, num_targets: int | None, records: Sequence[int] | None) -> None:
    """What a game does not look at must not be given: it would be silently ignored."""
    if game == "model" and num_targets is not None:
        raise InputError(
            "num_targets",
            num_targets,
            'the game "model" looks at the one model that is given',
            'Leave it out, or play another game, such as game = "algorithm".',
        )
    if records is None:
        return
    if game != "leave-one-out":
        raise InputError(
            "records",
            records,
            f"the game {game!r} is about all candidates",
            'Leave it out, or play game = "leave-one-out".',
        )
    if len(records) == 0:
        raise InputError(
            "records", records, "names no record", "Name members, or leave it out for three by lot."
        )


def _check_records(records: Sequence[int], split: Split) -> None:
    """The game of leave-one-out takes records out of the members: of others it can say nothing."""
    ids = split.pool.ids[: len(split.is_member)]
    members = {int(i) for i in ids[split.is_member]}
    candidates = {int(i) for i in ids}
    for place, wanted in enumerate(records):
        if wanted in members and wanted not in records[:place]:
            continue
        if wanted in members:
            rule = "stands there more than once"
        elif wanted in candidates:
            rule = "is a non-member, and this game leaves members out"
        else:
            rule = "is no candidate of this audit"
        raise InputError("records", wanted, rule, "Name members, each once, by row number.")


def _check_white_box(requests: Sequence[AttackRequest], model: Any) -> None:
    if isinstance(model, nn.Module) or (isinstance(model, Target) and model.module is not None):
        return
    for request in requests:
        if Observation.FINAL_MODEL in request.spec.requires:
            raise ObservationError(
                f"attack {request.label!r}",
                "needs final-model",
                "white-box attacks need the torch module itself, and "
                f"{type(model).__name__} only answers",
                "Pass the torch module, or leave the attack out.",
            )


def _open(path: Path, *, overwrite: bool) -> RunDirectory:
    """A new run directory, or the one that an interrupted audit left."""
    run = RunDirectory.create(path, overwrite=True) if overwrite else RunDirectory.resume(path)
    run.lock()
    if run.manifest_file.is_file() and run.read_manifest().engine != MODEL_ENGINE:
        run.release()
        raise InputError(
            "out", str(path), "another kind of run stands there", "Choose another directory."
        )
    return run


def _begin(run: RunDirectory, manifest: RunManifest, audit: ModelAudit) -> None:
    """Write what is known before the first attack; what stands there must be the same audit.

    Shadow models and answers stay, since their names say what they depend on. Results go: they may
    be of other attacks or settings.
    """
    if run.manifest_file.is_file():
        before, now = run.read_manifest().data.get(IDENTITY), manifest.data[IDENTITY]
        if before != now:
            raise InputError(
                "out",
                str(run.path),
                "the audit of another model, population, split or seed stands there",
                "Choose another directory, or overwrite it.",
            )
    if run.results.is_dir():
        shutil.rmtree(run.results)
    run.model_file.unlink(missing_ok=True)
    run.write_manifest(manifest)
    write_game(run, game_of(audit), truth_of(audit))


def _default_threat_model(model: Any) -> ThreatModel:
    return PRESETS["model-holder" if isinstance(model, nn.Module) else "model-user"]


def _prepare(
    model: Any,
    population: Records,
    *,
    members: Any,
    non_members: Any,
    auxiliary: Any,
    make_trainer: Callable[[Build | None, Build | None], Trainer | None],
    model_factory: Callable[[], Any] | str | None,
    train_size: int | None,
    seed: int,
    device: str,
    progress: Progress | None,
    task: TaskName | None,
) -> ModelAudit:
    split = split_population(population, members, non_members, auxiliary, seed=seed, task=task)
    kind: TaskName = "classification" if split.pool.targets is None else "regression"
    target, notes = recognise(model, device, kind)
    given = model_builder(model, model_factory)
    probabilities = kind == "classification" and gives_probabilities(target, split)
    build = given
    if probabilities:
        target = as_logits(target, device)
        notes.append(PROBABILITIES_NOTE)
        build = None if given is None else answering_logs(given)
    found = recognise_task(target, split.pool, split.num_audited)
    trainer = make_trainer(given, build)
    if isinstance(trainer, FunctionTrainer):
        trainer = AskedTrainer(trainer, kind, probabilities=probabilities)
    if build is not None and isinstance(model, nn.Module):
        check_same_architecture(model, build)
    workshop = Workshop(
        split.pool,
        split.num_audited,
        found,
        trainer=trainer,
        build=build,
        train_size=train_size or int(split.is_member.sum()),
        seed=seed,
        device=device,
        progress=progress,
    )
    rows = np.arange(len(split.pool))
    population_rows = rows[split.num_audited :]
    num = len(split.is_member)
    labs = {
        "candidates": Lab(workshop, target, rows[:num], population_rows),
        "null": Lab(workshop, target, rows[num : split.num_audited], population_rows),
    }
    labs["candidates"].logits()  # a model that answers NaN is refused here, naming the record
    return ModelAudit(target, split, found, workshop, labs, trainer, [*notes, *split.notes])


def _trainer(
    train_fn: Callable[..., Any] | str | None,
    training: TrainingConfig | Mapping[str, Any] | None,
    given: Build | None,
    build: Build | None,
    *,
    workers: int | None,
    ray_address: str | None,
    device: str,
) -> Trainer | None:
    """A trainer: a user's function gets the module as `given`, ours one that answers logits."""
    if train_fn is not None and training is not None:
        raise InputError(
            "train_fn, training", "both", "only one of the two can train", "Leave one out."
        )
    if train_fn is not None:
        function = load_attribute(train_fn, "train_fn") if isinstance(train_fn, str) else train_fn
        return FunctionTrainer(function, given, workers=workers, ray_address=ray_address)
    if training is None:
        return None
    if build is None:
        raise InputError(
            "training",
            "a table",
            "the default trainer needs an architecture, and the model is only a callable",
            'Name one: model_factory="my_module:build"; or give train_fn=....',
        )
    config = training_config(training)
    return DefaultTrainer(build, config, device=device, workers=workers, ray_address=ray_address)


def training_config(table: TrainingConfig | Mapping[str, Any]) -> TrainingConfig:
    """A configuration of the default trainer from a table.

    Raises:
        InputError: Naming the key.
    """
    from pydantic import ValidationError

    from fl_audit.errors import did_you_mean

    if isinstance(table, TrainingConfig):
        return table
    if not isinstance(table, Mapping):
        raise InputError("training", table, "must be a table", 'Give one, such as {"epochs": 20}.')
    try:
        return TrainingConfig.model_validate(dict(table))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        known = sorted(TrainingConfig.model_fields)
        raise InputError(
            f"training.{key}",
            first["input"],
            "unknown key" if first["type"] == "extra_forbidden" else first["msg"],
            f"{did_you_mean(key, known)}It takes: {', '.join(known)}",
        ) from error


def _with_proxy(audit: ModelAudit, proxy: ModelProxy, *, device: str, seed: int) -> dict[str, Lab]:
    """The same laboratories, with model A and its known members beside them."""
    kind: TaskName = audit.task.kind
    records = to_records(proxy.population, name="proxy.population", task=kind)
    members = rows_of(proxy.members, len(records), "proxy.members")
    is_member = np.isin(np.arange(len(records)), members)
    target, _ = recognise(proxy.model, device, kind)
    whole = Split(records, is_member, is_member[:0], "")
    if kind == "classification" and gives_probabilities(target, whole):
        target = as_logits(target, device)
    task = recognise_task(target, records, 0) if kind == "classification" else audit.task
    workshop = Workshop(
        records,
        len(records),
        task,
        trainer=None,
        train_size=len(members),
        seed=seed,
        device=device,
    )
    rows = np.arange(len(records))
    beside = (Lab(workshop, target, rows, rows[:0]), is_member)
    return {part: replace(lab, proxy=beside) for part, lab in audit.labs.items()}


def _attack(
    audit: ModelAudit,
    requests: Sequence[AttackRequest],
    sees: ThreatModel,
    *,
    game: Game,
    num_targets: int,
    records: Sequence[int] | None,
    seed: int,
    device: str,
    run: RunDirectory | None,
    progress: Progress | None,
) -> list[AttackResult]:
    given, truth, results = game_of(audit), truth_of(audit), list[AttackResult]()
    view = TraceView.of_nothing(sees)
    for number, request in enumerate(requests):
        if progress is not None:
            progress(request.label, number, len(requests))
        runner = Runner(request, view, given.auxiliary, seed, device, lambda: audit.labs)
        if game == "model":
            result = runner(given, truth, None)
        else:
            result = play(game, runner, given, truth, num_targets=num_targets, records=records)
        results.append(result)
        if run is not None:
            save_result(result, private_directory(run.results))
    if progress is not None and requests:
        progress("attacks done", len(requests), len(requests))
    return results

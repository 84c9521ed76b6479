"""Auditing a trained model: who can tell which records it was trained on?"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from attacks.audit import not_tested, save_result, scores_table
from attacks.decisions import DECISION_FPR
from attacks.devices import choose_device
from attacks.games import GAMES, Game, play
from attacks.membership.white_box_features import gradient_norms
from attacks.population import TaskName, rows_of, to_records
from attacks.requests import AttackRequest, check_attacks, parse_attacks
from attacks.runner import Runner
from attacks.shadows.lab import Lab, Workshop
from attacks.shadows.store import Store, entry_key
from attacks.shadows.target import (
    Target,
    Task,
    answer,
    callable_target,
    module_target,
    residuals,
)
from attacks.shadows.trainers import DefaultTrainer, FunctionTrainer, Trainer
from attacks.shadows.training import Build, TrainingConfig, factory_builder, fresh_builder
from attacks.split import Split, split_population
from attacks.summary import access_gains, agreement, norm_histogram, utility
from fl_audit.errors import InputError, UnknownNameError
from fl_audit.factories import ModelSpec, load_attribute
from fl_audit.files import private_directory, write_text
from fl_audit.game import GameRules, GameTruth, MembershipGame, write_game
from fl_audit.records import Records
from fl_audit.report.model import AuditReport, GameSummary, ModelSummary, NotTested
from fl_audit.results import AttackResult, MembershipResult
from fl_audit.run_directory import RunDirectory, RunManifest, ThreatModelRecord
from fl_audit.threat_model import PRESETS, ThreatModel
from fl_audit.trace import TraceView
from fl_audit.versions import utc_now, versions

Progress = Callable[[str, int, int], None]
DEFAULT_ATTACKS = ("population", "rmia", "lira")
_MOST_NORMS = 2000  # records whose gradients are taken for the histogram


@dataclass(frozen=True, slots=True, eq=False)
class ModelProxy:
    """Another trained model with known members, to train an attack on ("model A").

    Attributes:
        model: A torch module, or a callable records -> probabilities.
        population: Its records, disjoint from the audited ones.
        members: Rows of them that it was trained on.
    """

    model: Any
    population: Any
    members: Any


@dataclass(slots=True)
class _Audit:
    """What is known of an audit before its attacks run."""

    target: Target
    split: Split
    task: Task
    workshop: Workshop
    labs: dict[str, Lab]
    trainer: Trainer | None
    notes: list[str] = field(default_factory=list)


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
    attacks: Sequence[str | Mapping[str, Any] | AttackRequest] = DEFAULT_ATTACKS,
    game: Game = "model",
    num_targets: int = 8,
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
        model: A torch module (evaluated in eval mode, whatever its mode), or any callable from
            inputs (n, ...) to class probabilities (n, c), for black-box attacks only.
        population: (inputs, labels) as arrays or tensors, a torch `Dataset` of such pairs (read
            in blocks if it is larger than memory), or `Records`. Whole-number labels are classes;
            others are regression targets.
        members: Rows of the population that the model was trained on, or a mask.
        non_members: Rows that it was not trained on. By default half of the other records, at most
            as many as members; the rest is auxiliary.
        auxiliary: Rows of the population, or a second data set: what the adversary has. Shadow,
            reference and distilled models of mode "offline" are trained on nothing else.
        train_fn: `train(model, dataset, *, seed) -> model`, or its "module:function".
        training: Instead of it, a table for the default trainer (see `TrainingConfig`).
        model_factory: Builds a fresh module; needed where layers cannot be initialised again.
        attacks: Names, or tables with `name`, `label` and settings.
        game: Whose privacy loss: of the "model", of the "algorithm" (over models trained on random
            halves), of single records over such models ("record"), or with and without the record
            and all else fixed ("leave-one-out").
        num_targets: Models that the last three games look at.
        records: Members whose loss the game "leave-one-out" measures; by default three by lot.
        task: "classification" or "regression"; decided by the labels if not given.
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
    requests = parse_attacks(attacks)
    sees = threat_model or _default_threat_model(model)
    check_attacks(requests, sees)
    chosen = choose_device(device)
    start = time.perf_counter()
    run = None if out is None else _open(Path(out), overwrite=overwrite)
    try:
        audit = _prepare(
            model,
            to_records(population, task=task),
            members=members,
            non_members=non_members,
            auxiliary=auxiliary,
            make_trainer=lambda build: _trainer(
                train_fn, training, build, workers=workers, ray_address=ray_address, device=chosen
            ),
            model_factory=model_factory,
            train_size=train_size,
            seed=seed,
            device=chosen,
            store=None if run is None else Store(run.path / "shadows"),
            progress=progress,
            task=task,
        )
        if proxy is not None:
            audit.labs = _with_proxy(audit, proxy, device=chosen, seed=seed)
        manifest = _manifest(title, seed, sees, audit, model_factory)
        if run is not None:
            _begin(run, manifest, audit)
        results = _attack(
            audit,
            requests,
            sees,
            game=game,
            num_targets=num_targets,
            records=records,
            seed=seed,
            device=chosen,
            run=run,
            progress=progress,
        )
        seconds = {"audit": round(time.perf_counter() - start, 3)}
        manifest = manifest.model_copy(update={"state": "done", "seconds": seconds})
        report = _report(manifest, audit, requests, results, game)
        if run is not None:
            assert report.model is not None
            write_text(run.model_file, report.model.model_dump_json(indent=1))
            run.write_manifest(manifest)
            report.save(run.path)
        return report
    finally:
        if run is not None:
            run.release()


def _open(path: Path, *, overwrite: bool) -> RunDirectory:
    """A new run directory, or the one that an interrupted audit left."""
    run = RunDirectory.create(path, overwrite=True) if overwrite else RunDirectory.resume(path)
    run.lock()
    if run.manifest_file.is_file() and run.read_manifest().engine != _ENGINE:
        run.release()
        raise InputError(
            "out", str(path), "another kind of run stands there", "Choose another directory."
        )
    return run


def _begin(run: RunDirectory, manifest: RunManifest, audit: _Audit) -> None:
    """Write what is known before the first attack; what stands there must be the same audit.

    Shadow models and answers stay, since their names say what they depend on. Results go: they may
    be of other attacks or settings.
    """
    if run.manifest_file.is_file():
        before, now = run.read_manifest().data.get(_WHAT), manifest.data[_WHAT]
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
    write_game(run, _game(audit), _truth(audit))


def _identity(audit: _Audit, seed: int) -> str:
    """Which model, records, split and seed this is; of a callable, all but the model."""
    split = audit.split
    return entry_key(
        audit.target.key,
        split.pool.digest(),
        split.is_member.tolist(),
        split.null_is_member.tolist(),
        seed,
    )


_ENGINE = "none: a trained model"
_WHAT = "sha256 of model, records, split and seed"


def _default_threat_model(model: Any) -> ThreatModel:
    return PRESETS["model-holder" if isinstance(model, nn.Module) else "model-user"]


def _prepare(
    model: Any,
    population: Records,
    *,
    members: Any,
    non_members: Any,
    auxiliary: Any,
    make_trainer: Callable[[Build | None], Trainer | None],
    model_factory: Callable[[], Any] | str | None,
    train_size: int | None,
    seed: int,
    device: str,
    store: Store | None,
    progress: Progress | None,
    task: TaskName | None,
) -> _Audit:
    split = split_population(population, members, non_members, auxiliary, seed=seed, task=task)
    target, notes = _target(model, device)
    found = _task(target, split.pool, split.num_audited)
    build = _builder(model, model_factory)
    trainer = make_trainer(build)
    if build is not None and isinstance(model, nn.Module):
        _check_same_architecture(model, build)
    workshop = Workshop(
        split.pool,
        split.num_audited,
        found,
        trainer=trainer,
        build=build,
        train_size=train_size or int(split.is_member.sum()),
        seed=seed,
        store=store,
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
    return _Audit(target, split, found, workshop, labs, trainer, [*notes, *split.notes])


def _target(model: Any, device: str) -> tuple[Target, list[str]]:
    if isinstance(model, Target):
        return model, []
    if isinstance(model, nn.Module):
        note = "The model was passed in training mode; it is audited in eval mode."
        return module_target(model, device=device), [note] if model.training else []
    if callable(model):
        return callable_target(model), []
    predict = getattr(model, "predict_proba", None)
    if callable(predict):
        return callable_target(_flattened(predict)), []
    raise InputError(
        "model",
        type(model).__name__,
        "is neither a torch module nor something that answers probabilities",
        "Pass a torch module, a function records -> probabilities, or an object with "
        "predict_proba.",
    )


def _flattened(predict: Callable[..., Any]) -> Callable[[NDArray[np.float32]], Any]:
    """scikit-learn's models want one row a record."""
    return lambda inputs: predict(np.asarray(inputs).reshape(len(inputs), -1))


def _task(target: Target, pool: Records, num_audited: int) -> Task:
    """What the model is for, and the scale of its residuals (auxiliary records only)."""
    if pool.targets is None:
        width = answer(target, np.asarray(pool.inputs[:1])).shape[1]
        outside = np.flatnonzero(pool.labels >= width)
        if outside.size:
            raise InputError(
                f"label of record {pool.ids[outside[0]]}",
                int(pool.labels[outside[0]]),
                f"the model has classes 0 to {width - 1}",
                "Use the labels that the model was trained with.",
            )
        return Task("classification", width)
    rows = np.arange(num_audited, len(pool))
    if len(rows) < 2:
        raise InputError(
            "auxiliary",
            len(rows),
            "a regression audit needs auxiliary records to fix the scale of residuals",
            "Give auxiliary=..., or fewer members and non-members.",
        )
    scale = float(np.sqrt(np.mean(residuals(target, pool.take(rows)) ** 2)))
    return Task("regression", 2, max(scale, 1e-12))


def _builder(model: Any, factory: Callable[[], Any] | str | None) -> Build | None:
    if factory is not None:
        made = load_attribute(factory, "model_factory") if isinstance(factory, str) else factory
        return factory_builder(made)
    return fresh_builder(model) if isinstance(model, nn.Module) else None


def _check_same_architecture(model: nn.Module, build: Build) -> None:
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    made = {name: tuple(p.shape) for name, p in build(0).named_parameters()}
    for name in [*wanted, *made]:
        if wanted.get(name) != made.get(name):
            raise InputError(
                f"model_factory, parameter {name!r}",
                made.get(name),
                f"the model has {wanted.get(name)}",
                "Name the factory (and settings) that the model was built with.",
            )


def _trainer(
    train_fn: Callable[..., Any] | str | None,
    training: TrainingConfig | Mapping[str, Any] | None,
    build: Build | None,
    *,
    workers: int | None,
    ray_address: str | None,
    device: str,
) -> Trainer | None:
    if train_fn is not None and training is not None:
        raise InputError(
            "train_fn, training", "both", "only one of the two can train", "Leave one out."
        )
    if train_fn is not None:
        function = load_attribute(train_fn, "train_fn") if isinstance(train_fn, str) else train_fn
        return FunctionTrainer(function, build, workers=workers, ray_address=ray_address)
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


def _with_proxy(audit: _Audit, proxy: ModelProxy, *, device: str, seed: int) -> dict[str, Lab]:
    """The same laboratories, with model A and its known members beside them."""
    kind: TaskName = audit.task.kind
    records = to_records(proxy.population, name="proxy.population", task=kind)
    members = rows_of(proxy.members, len(records), "proxy.members")
    is_member = np.isin(np.arange(len(records)), members)
    target, _ = _target(proxy.model, device)
    task = _task(target, records, 0) if kind == "classification" else audit.task
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


def _manifest(
    title: str,
    seed: int,
    sees: ThreatModel,
    audit: _Audit,
    factory: Callable[[], Any] | str | None,
) -> RunManifest:
    members = audit.split.is_member
    return RunManifest(
        title=title,
        created=utc_now(),
        seed=seed,
        engine=_ENGINE,
        versions=versions(),
        threat_model=ThreatModelRecord.of(sees),
        strategy={},
        defence={},
        model=ModelSpec(factory=factory) if isinstance(factory, str) else None,
        data={
            "input_shape": list(audit.split.pool.input_shape),
            "num_classes": audit.task.num_classes if audit.task.kind == "classification" else 1,
            "members": int(members.sum()),
            "non_members": int((~members).sum()),
            _WHAT: _identity(audit, seed),
        },
    )


def _game(audit: _Audit) -> MembershipGame:
    split = audit.split
    num, total = len(split.is_member), split.num_audited
    rows = np.arange(len(split.pool))
    rules = GameRules(
        decided_by="members and non-members as given, by row number; whether inclusion was decided "
        "by lot is for the caller to know: if not, what tells the two apart may be their data",
        non_members_per_member=1,
        groups=num,
        null_groups=len(split.null_is_member),
        notes=split.notes,
    )
    return MembershipGame(
        rules,
        split.pool.take(rows[:num]),
        split.pool.take(rows[num:total]),
        split.pool.take(rows[total:]),
        audit.task.num_classes,
    )


def _truth(audit: _Audit) -> GameTruth:
    split = audit.split
    return GameTruth(split.is_member, np.full(len(split.is_member), -1), split.null_is_member)


def _attack(
    audit: _Audit,
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
    given, truth, results = _game(audit), _truth(audit), list[AttackResult]()
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


def _report(
    manifest: RunManifest,
    audit: _Audit,
    requests: Sequence[AttackRequest],
    results: Sequence[AttackResult],
    game: Game,
) -> AuditReport:
    given = _game(audit)
    report = AuditReport(
        run=manifest,
        trace=None,
        game=GameSummary(
            rules=given.rules,
            num_candidates=len(given.candidates),
            num_null=len(given.null),
            num_auxiliary=len(given.auxiliary),
        ),
        attacks=sorted((r.record for r in results), key=lambda r: (r.kind, r.label)),
        not_tested=[
            NotTested.model_validate(entry)
            for entry in not_tested([r.spec.name for r in requests], on_model=True)
        ],
        model=_summary(audit, results, game),
    )
    report.attach(
        {
            result.record.scores_file: scores_table(result)
            for result in results
            if isinstance(result, MembershipResult)
        }
    )
    return report


def _summary(audit: _Audit, results: Sequence[AttackResult], game: Game) -> ModelSummary:
    lab, split = audit.labs["candidates"], audit.split
    module = audit.target.module
    norms = None
    if module is not None and audit.task.kind == "classification":
        rows = _spread(len(split.is_member), _MOST_NORMS)
        found = gradient_norms(module, lab.candidates.take(rows), device=audit.workshop.device)
        norms = norm_histogram(found, split.is_member[rows])
    size = "" if module is None else f", {sum(p.numel() for p in module.parameters()):,} parameters"
    trained = audit.workshop.trained()
    return ModelSummary(
        target=f"{type(module).__name__}{size}" if module is not None else "answers only",
        task=audit.task.kind,
        game=GAMES[game],
        notes=audit.notes,
        num_members=int(split.is_member.sum()),
        num_non_members=int((~split.is_member).sum()),
        num_null=len(split.null_is_member),
        num_auxiliary=len(split.pool) - split.num_audited,
        auxiliary_from=split.auxiliary_from,
        trainer=audit.trainer.description if audit.trainer is not None and trained else None,
        shadow_models=trained,
        utility=utility(
            lab.logits(),
            lab.candidates.labels,
            split.is_member,
            has_classes=audit.task.kind == "classification",
        ),
        gradient_norms=norms,
        agreement=agreement(results),
        agreement_fpr=DECISION_FPR,
        gains=access_gains(results) if game == "model" else [],
    )


def _spread(total: int, most: int) -> NDArray[np.int64]:
    if total <= most:
        return np.arange(total)
    return np.linspace(0, total - 1, most).round().astype(np.int64)

"""Auditing a trained model: who can tell which records it was trained on?"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.audit import not_tested, save_result, scores_table
from attacks.decisions import DECISION_FPR
from attacks.devices import choose_device
from attacks.games import GAMES, Game, play
from attacks.membership.white_box_features import gradient_norms
from attacks.population import TaskName, rows_of, to_records
from attacks.requests import AttackRequest, Wanted, check_attacks, parse_attacks
from attacks.runner import Runner
from attacks.shadows.lab import Lab, Workshop
from attacks.shadows.store import entry_key
from attacks.shadows.target import (
    Target,
    Task,
    answer,
    callable_target,
    module_target,
    residuals,
)
from attacks.shadows.trainers import DefaultTrainer, FunctionTrainer, OnModel, Trainer
from attacks.shadows.training import Build, Job, TrainingConfig, factory_builder, fresh_builder
from attacks.split import Split, split_population
from attacks.summary import access_gains, agreement, norm_histogram, utility
from fl_audit.errors import AuditError, InputError, ObservationError, UnknownNameError
from fl_audit.factories import ModelSpec, load_attribute
from fl_audit.files import private_directory, write_text
from fl_audit.game import GameRules, GameTruth, MembershipGame, write_game
from fl_audit.records import Records
from fl_audit.report.model import AuditReport, GameSummary, ModelSummary, NotTested
from fl_audit.results import AttackResult, MembershipResult
from fl_audit.run_directory import RunDirectory, RunManifest, ThreatModelRecord
from fl_audit.threat_model import PRESETS, Observation, ThreatModel
from fl_audit.trace import TraceView
from fl_audit.versions import utc_now, versions

Progress = Callable[[str, int, int], None]
DEFAULT_ATTACKS = ("population", "rmia", "lira")
_DEFAULT_TARGETS = 8
_PROBED = 64  # records whose answers tell probabilities from logits
_SUM_TOLERANCE = 1e-4  # of a module's probabilities, in single precision
_LEAST_PROBABILITY = 1e-12  # whose logarithm a smaller one gets; as for callables
_MOST_NORMS = 2000  # records whose gradients are taken for the histogram


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
        to_records(population, task=task, width=lambda inputs: _width(model, inputs, chosen)),
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
    manifest = _manifest(title, seed, sees, audit, model_factory)
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
    make_trainer: Callable[[Build | None, Build | None], Trainer | None],
    model_factory: Callable[[], Any] | str | None,
    train_size: int | None,
    seed: int,
    device: str,
    progress: Progress | None,
    task: TaskName | None,
) -> _Audit:
    split = split_population(population, members, non_members, auxiliary, seed=seed, task=task)
    kind: TaskName = "classification" if split.pool.targets is None else "regression"
    target, notes = _target(model, device, kind)
    given = _builder(model, model_factory)
    probabilities = kind == "classification" and _gives_probabilities(target, split)
    build = given
    if probabilities:
        target = _as_logits(target, device)
        notes.append(_PROBABILITIES)
        build = None if given is None else _answering_logs(given)
    found = _task(target, split.pool, split.num_audited)
    trainer = make_trainer(given, build)
    if isinstance(trainer, FunctionTrainer):
        trainer = _Asked(trainer, kind, probabilities=probabilities)
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


def _target(model: Any, device: str, kind: TaskName) -> tuple[Target, list[str]]:
    if isinstance(model, Target):
        return model, []
    if isinstance(model, nn.Module):
        note = "The model was passed in training mode; it is audited in eval mode."
        return module_target(model, device=device), [note] if model.training else []
    answers = _answers(model, kind)
    if answers is not None:
        return callable_target(answers, kind=kind), []
    wanted = "probabilities" if kind == "classification" else "numbers"
    method = "predict_proba" if kind == "classification" else "predict"
    raise InputError(
        "model",
        type(model).__name__,
        f"is neither a torch module nor something that answers {wanted}",
        f"Pass a torch module, a function records -> {wanted}, or an object with {method}.",
    )


def _answers(model: Any, kind: TaskName) -> Callable[[NDArray[np.float32]], Any] | None:
    """How to ask what is no module: a function, or an object in scikit-learn's manner."""
    if callable(model):
        return cast("Callable[[NDArray[np.float32]], Any]", model)
    method = getattr(model, "predict_proba" if kind == "classification" else "predict", None)
    return _flattened(method) if callable(method) else None


def _width(model: Any, inputs: NDArray[np.float32], device: str) -> int:
    """How many outputs a model has, whatever they mean."""
    target = model if isinstance(model, Target) else None
    if isinstance(model, nn.Module):
        target = module_target(model, device=device)
    if target is None:
        ask = _answers(model, "classification") or _answers(model, "regression")
        if ask is None:
            target, _ = _target(model, device, "classification")  # raises, saying what is wanted
        else:
            target = callable_target(ask, kind="regression")  # taken as they are
    return int(answer(target, inputs).shape[1])


_PROBABILITIES = (
    "The module answers probabilities, not logits (all between 0 and 1, with sum 1): their "
    f"logarithms, of at least {_LEAST_PROBABILITY:g}, are used as logits, of shadow models too."
)


def _gives_probabilities(target: Target, split: Split) -> bool:
    """Whether a module ends in a softmax: another one over it would flatten every confidence."""
    if target.module is None:
        return False
    total = len(split.pool)
    first = split.num_audited if split.num_audited < total else 0
    rows = np.arange(first, min(total, first + _PROBED))
    answers = answer(target, np.asarray(split.pool.take(rows).inputs))
    return bool(
        answers.shape[1] > 1
        and (answers >= 0).all()
        and (answers <= 1).all()
        and (np.abs(answers.sum(axis=1) - 1) <= _SUM_TOLERANCE).all()
    )


def _log_hook(module: nn.Module, inputs: Any, answers: torch.Tensor) -> torch.Tensor:
    return answers.clamp_min(_LEAST_PROBABILITY).log()


def _logs_of(module: nn.Module) -> nn.Module:
    """A copy that answers logarithms. A hook: a wrapper would change the paths of the layers."""
    owned = copy.deepcopy(module)
    owned.register_forward_hook(_log_hook)
    return owned


def _as_logits(target: Target, device: str) -> Target:
    assert target.module is not None
    logs = module_target(_logs_of(target.module), device=device)
    # weights and architecture are those of a module that answers logits; its answers are not
    return replace(logs, key=None if target.key is None else entry_key("logarithms", target.key))


def _answering_logs(build: Build) -> Build:
    return lambda seed: _logs_of(build(seed))


class _Asked:
    """A user's trainer whose models are asked in the way that the target is."""

    def __init__(self, trainer: Trainer, kind: TaskName, *, probabilities: bool) -> None:
        self.description, self.key = trainer.description, trainer.key
        self._trainer, self._kind, self._probabilities = trainer, kind, probabilities

    def train(self, jobs: Sequence[Job], on_model: OnModel) -> None:
        """Train a model for each job."""
        self._trainer.train(jobs, lambda number, model: on_model(number, self._asked(model)))

    def _asked(self, model: Any) -> Any:
        if isinstance(model, nn.Module):
            return _logs_of(model) if self._probabilities else model
        return _target(model, "cpu", self._kind)[0]


def _flattened(predict: Callable[..., Any]) -> Callable[[NDArray[np.float32]], Any]:
    """scikit-learn's models want one row a record."""
    return lambda inputs: predict(np.asarray(inputs).reshape(len(inputs), -1))


def _task(target: Target, pool: Records, num_audited: int) -> Task:
    """What the model is for, and the scale of its residuals (auxiliary records only)."""
    if pool.targets is None:
        width = answer(target, np.asarray(pool.inputs[:1])).shape[1]
        if width == 1:
            raise InputError(
                "answers of the model",
                (1, 1),
                "the labels are classes, and one output tells no classes apart",
                'If it predicts a number, say task = "regression"; if one of two classes, give a '
                "model with two outputs.",
            )
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


def _with_proxy(audit: _Audit, proxy: ModelProxy, *, device: str, seed: int) -> dict[str, Lab]:
    """The same laboratories, with model A and its known members beside them."""
    kind: TaskName = audit.task.kind
    records = to_records(proxy.population, name="proxy.population", task=kind)
    members = rows_of(proxy.members, len(records), "proxy.members")
    is_member = np.isin(np.arange(len(records)), members)
    target, _ = _target(proxy.model, device, kind)
    whole = Split(records, is_member, is_member[:0], "")
    if kind == "classification" and _gives_probabilities(target, whole):
        target = _as_logits(target, device)
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
    norms, notes = None, list(audit.notes)
    if module is not None and audit.task.kind == "classification":
        rows = _spread(len(split.is_member), _MOST_NORMS)
        try:
            found = gradient_norms(module, lab.candidates.take(rows), device=audit.workshop.device)
            norms = norm_histogram(found, split.is_member[rows])
        except AuditError as error:  # a picture beside the attacks: what they found stands
            notes.append(f"No gradient norms: {error}")
    size = "" if module is None else f", {sum(p.numel() for p in module.parameters()):,} parameters"
    trained = audit.workshop.trained()
    return ModelSummary(
        target=f"{type(module).__name__}{size}" if module is not None else "answers only",
        task=audit.task.kind,
        game=GAMES[game],
        notes=notes,
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

"""Running attacks on a trace and scoring what they say. The only file here that touches files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from attacks.decisions import Calibration
from attacks.registry import known_attacks, load_attack
from attacks.risk import access_of
from attacks.scoring import score
from attacks.shadows.lab import Lab
from attacks.shadows.store import Store
from attacks.shadows.trace import view_labs
from attacks.shadows.trainers import Trainer
from fl_audit.attack_spec import (
    AttackInput,
    AttackOutput,
    AttackSettings,
    AttackSpec,
    MembershipScores,
)
from fl_audit.errors import AuditError, InputError, clean_text, did_you_mean
from fl_audit.factories import ModelSpec
from fl_audit.files import private_directory, write_arrays, write_bytes, write_text
from fl_audit.game import (
    GameTruth,
    MembershipGame,
    has_game,
    has_truth,
    read_game,
    read_truth,
    scored_candidates,
)
from fl_audit.local_training import LocalTrainings
from fl_audit.randomness import derived_rng
from fl_audit.records import Records
from fl_audit.report.build import read_results
from fl_audit.results import (
    AnyAttackRecord,
    AttackResult,
    MembershipResult,
    ReconstructionResult,
    UnavailableRecord,
    UnavailableResult,
)
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import Knowledge, ThreatModel, flag_names
from fl_audit.trace import Trace, TraceView
from fl_audit.trace.view import ModelBuilder

logger = logging.getLogger("fl_audit")
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@dataclass(frozen=True, slots=True)
class AttackRequest:
    """An attack as asked for: which, with what settings, under what label."""

    label: str
    spec: AttackSpec
    settings: AttackSettings


def parse_attacks(wanted: Sequence[str | Mapping[str, Any] | AttackRequest]) -> list[AttackRequest]:
    """Attacks by name, or by a table with `name`, optionally `label`, and settings.

    The same attack may appear several times; labels are made unique by "-2", "-3", ...

    Raises:
        UnknownNameError: If there is no such attack.
        InputError: If a setting is unknown or impossible.
    """
    requests: list[AttackRequest] = []
    for item in wanted:
        request = item if isinstance(item, AttackRequest) else _parse_attack(item)
        taken = {r.label for r in requests}
        label, number = request.label, 2
        while label in taken:
            label, number = f"{request.label}-{number}", number + 1
        requests.append(AttackRequest(label, request.spec, request.settings))
    return requests


def check_attacks(requests: Sequence[AttackRequest], threat_model: ThreatModel) -> None:
    """Refuse attacks that this adversary cannot run, before anything runs.

    Raises:
        ObservationError: Naming the attack and each missing flag.
    """
    for request in requests:
        threat_model.require(f"attack {request.label!r}", request.spec.requires, request.spec.knows)


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
    device: str = "cpu",
    trainer: Trainer | None = None,
    train_size: int | None = None,
    store: Store | None = None,
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
        trainer: Trains shadow models; without one, attacks that need them are unavailable.
        train_size: Records that the target was trained on; by default half of the candidates.
        store: Where shadow models and answers are kept.
        on_result: Called with each result as soon as it is there.

    Raises:
        UnknownNameError, InputError: If an attack or a setting is unknown.
        ObservationError: If the threat model does not grant what an attack needs.
    """
    trace = trace if isinstance(trace, Trace) else Trace.open(Path(trace))
    requests = parse_attacks(attacks)
    check_attacks(requests, threat_model)
    view = TraceView(trace, threat_model, model=model, local_training=local_training, up_to=up_to)
    knows_aux = Knowledge.AUXILIARY_DATA in threat_model.knows
    auxiliary = game.auxiliary if game is not None and knows_aux else None
    is_scored = None
    if game is not None and truth is not None:
        is_scored = scored_candidates(game, truth, trace, up_to=up_to)
    labs: dict[str, Lab] = {}
    if game is not None and model is not None and any(r.spec.is_on_model for r in requests):
        labs = view_labs(
            view,
            game,
            trainer=trainer,
            seed=seed,
            device=device,
            store=store,
            train_size=train_size,
            progress=progress,
        )
    results = []
    for number, request in enumerate(requests):
        if progress is not None:
            progress(request.label, number, len(requests))
        run = Runner(request, view, auxiliary, seed, device, labs)
        result = run(game, truth, is_scored)
        results.append(result)
        if on_result is not None:
            on_result(result)
    if progress is not None and requests:
        progress("attacks done", len(requests), len(requests))
    return results


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

    return audit_trace(
        run.open_trace(),
        attacks=attacks,
        threat_model=manifest.threat_model.threat_model(),
        game=read_game(run) if played else None,
        truth=read_truth(run) if has_truth(run) else None,
        model=None if spec is None else spec.builder(trusted=trusted),
        local_training=manifest.local_training,
        seed=manifest.seed,
        up_to=up_to,
        device=device,
        progress=progress,
        on_result=save,
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
        _write_scores(result, folder / result.record.scores_file)
    elif isinstance(result, ReconstructionResult) and result.record.arrays_file is not None:
        write_arrays(folder / result.record.arrays_file, result.arrays)
    write_text(folder / f"{record.label}.json", record.model_dump_json(indent=1))


def not_tested(done: Sequence[str]) -> list[dict[str, str]]:
    """Known attacks that are not in `done`, with what they would need: for the report."""
    missing = []
    for name in sorted(set(known_attacks()) - set(done)):
        spec = load_attack(name)
        needs = ", ".join(flag_names(spec.requires) + flag_names(spec.knows))
        missing.append({"attack": name, "summary": spec.summary, "needs": needs})
    return missing


@dataclass(frozen=True, slots=True)
class Runner:
    """One attack: run on the candidates, run on the null, calibrate, score.

    Attributes:
        labs: "candidates" and "null" -> what an attack on the model works with, if there is one.
    """

    request: AttackRequest
    view: TraceView
    auxiliary: Records | None
    seed: int
    device: str
    labs: Mapping[str, Lab]

    def __call__(
        self,
        game: MembershipGame | None,
        truth: GameTruth | None,
        is_scored: NDArray[np.bool_] | None,
    ) -> AttackResult:
        """The result; `UnavailableResult` with the reason if the attack fails."""
        header = self._header()
        try:
            if self.request.spec.kind == "membership":
                return self._membership(game, truth, is_scored, header)
            return score(self._run(None, "targets"), header, game=game, truth=truth)
        except AuditError as error:
            return _unavailable(header, str(error))
        except Exception as error:
            logger.debug("attack %s failed", self.request.label, exc_info=True)
            return _unavailable(header, f"the attack failed: {type(error).__name__}: {error}")

    def _membership(
        self,
        game: MembershipGame | None,
        truth: GameTruth | None,
        is_scored: NDArray[np.bool_] | None,
        header: dict[str, Any],
    ) -> AttackResult:
        if game is None:
            raise InputError(
                "candidates",
                None,
                "a membership attack needs records to ask about",
                "Play a membership game (simulations do), or give audit_trace(game=...).",
            )
        known = null_known = None
        if truth is not None and Knowledge.KNOWN_MEMBERS in self.request.spec.knows:
            known = self._known(truth.is_member, is_scored, "candidates")
            is_scored = _without(known, is_scored, len(truth.is_member))
            null_known = self._known(truth.null_is_member, None, "null")
        output = self._run(game.candidates, "candidates", known=known)
        null, null_scored = None, None
        if len(game.null):
            null = self._run(game.null, "null", known=null_known)
            null_scored = _without(null_known, None, len(game.null))
        return score(
            output,
            header,
            game=game,
            truth=truth,
            null=null,
            null_scored=null_scored,
            is_scored=is_scored,
            calibration=self._calibration(),
            access=access_of(self.request.spec.requires),
        )

    def _calibration(self) -> Calibration | None:
        """The same attack on a shadow model whose members are known."""
        if not self.request.spec.is_on_model or "candidates" not in self.labs:
            return None
        settings = self.request.settings
        num = getattr(settings, "num_shadow_models", 2)
        played = self.labs["candidates"].calibration(getattr(settings, "mode", "online"), num)
        if played is None:
            return None
        lab, is_member = played
        known, scored = None, np.ones(len(is_member), dtype=np.bool_)
        if Knowledge.KNOWN_MEMBERS in self.request.spec.knows:
            known = self._known(is_member, None, "calibration")
            scored = _without(known, None, len(is_member))
        else:
            most = self.request.spec.most_calibration
            keep = np.sort(self._rng("calibration rows").permutation(len(is_member))[:most])
            lab, is_member = replace(lab, rows=lab.rows[keep]), is_member[keep]
            scored = scored[keep]
        try:
            output = self._run(lab.candidates, "calibration", lab=lab, known=known)
        except AuditError:
            logger.debug("attack %s: no calibration", self.request.label, exc_info=True)
            return None
        assert isinstance(output, MembershipScores)
        if not scored.any() or len(np.unique(is_member[scored])) < 2:
            return None
        return Calibration(output.scores[scored], is_member[scored])

    def _known(
        self, is_member: NDArray[np.bool_], is_scored: NDArray[np.bool_] | None, part: str
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """A share of the members, and as large a share of the non-members, that are granted."""
        fraction = getattr(self.request.settings, "known_fraction", 0.5)
        rng = self._rng(f"known {part}")
        usable = np.ones(len(is_member), np.bool_) if is_scored is None else is_scored
        rows = []
        for side in (is_member & usable, ~is_member & usable):
            own = rng.permutation(np.flatnonzero(side))
            rows.append(own[: round(fraction * len(own))])
        chosen = np.sort(np.concatenate(rows))
        return chosen, is_member[chosen]

    def _run(
        self,
        candidates: Records | None,
        part: str,
        *,
        lab: Lab | None = None,
        known: tuple[NDArray[np.int64], NDArray[np.bool_]] | None = None,
    ) -> AttackOutput:
        """The attack, with a generator of its own for (seed, label, part)."""
        return self.request.spec.run(
            AttackInput(
                view=self.view,
                settings=self.request.settings,
                rng=self._rng(part),
                candidates=candidates,
                auxiliary=self.auxiliary,
                device=self.device,
                lab=lab or self.labs.get(part),
                known=known,
            )
        )

    def _rng(self, part: str) -> np.random.Generator:
        return derived_rng(self.seed, "attack", self.request.label, part)

    def _header(self) -> dict[str, Any]:
        spec = self.request.spec
        return {
            "label": self.request.label,
            "attack": spec.name,
            "seed": self.seed,
            "settings": self.request.settings.model_dump(mode="json"),
            "requires": flag_names(spec.requires),
            "knows": flag_names(spec.knows),
            "reference": spec.reference,
            "summary": spec.summary,
            "rounds": list(self.view.rounds),
        }


def _without(
    known: tuple[NDArray[np.int64], NDArray[np.bool_]] | None,
    is_scored: NDArray[np.bool_] | None,
    num: int,
) -> NDArray[np.bool_]:
    """What figures are computed from: not the records whose membership was granted."""
    scored = np.ones(num, dtype=np.bool_) if is_scored is None else is_scored.copy()
    if known is not None:
        scored[known[0]] = False
    return scored


def _unavailable(header: Mapping[str, Any], reason: str) -> UnavailableResult:
    return UnavailableResult(UnavailableRecord(**header, reason=clean_text(reason)))


def _parse_attack(item: str | Mapping[str, Any]) -> AttackRequest:
    table = {"name": item} if isinstance(item, str) else dict(item)
    if "name" not in table:
        raise InputError(
            "attack", table, "a table of settings must name its attack", 'Add name = "...".'
        )
    name = str(table.pop("name"))
    label = str(table.pop("label", name))
    if not label.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise InputError(
            "attack label",
            label,
            "must be letters, digits, '-', '_' and '.'",
            "It names the result's file.",
        )
    spec = load_attack(name)
    try:
        return AttackRequest(label, spec, spec.settings.model_validate(table))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        known = sorted(spec.settings.model_fields)
        guess = did_you_mean(key, known)
        raise InputError(
            f"attack {name!r} setting {key!r}",
            first["input"],
            "unknown setting" if first["type"] == "extra_forbidden" else first["msg"],
            f"{guess}It takes: {', '.join(known) or 'no settings'}",
        ) from error


def _write_scores(result: MembershipResult, path: Path) -> None:
    columns: dict[str, Any] = {
        "id": result.candidates.ids,
        "label": result.candidates.labels,
        "score": result.scores,
    }
    if result.probabilities is not None:
        columns["probability"] = result.probabilities
        columns["decision"] = result.called
    if result.is_member is not None:
        columns["is_member"] = result.is_member
        columns["is_scored"] = result.is_scored
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_bytes(path, sink.getvalue().to_pybytes())

"""From an audit of a trained model to its report, and what stands beside the attacks there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.audit import not_tested, scores_table
from attacks.decisions import DECISION_FPR
from attacks.games import GAMES, Game
from attacks.membership.white_box_features import gradient_norms
from attacks.requests import AttackRequest
from attacks.shadows.lab import Lab
from attacks.shadows.store import entry_key
from attacks.shadows.target import Target, Task
from attacks.shadows.trainers import Trainer
from attacks.shadows.workshop import Workshop
from attacks.split import Split
from attacks.summary import access_gains, agreement, norm_histogram, utility
from fl_audit.errors import AuditError
from fl_audit.factories import ModelSpec
from fl_audit.game import GameRules, GameTruth, MembershipGame
from fl_audit.report.model import AuditReport, GameSummary, ModelSummary, NotTested
from fl_audit.results import AttackResult, MembershipResult
from fl_audit.run_directory import RunManifest, ThreatModelRecord
from fl_audit.threat_model import ThreatModel
from fl_audit.versions import utc_now, versions

MODEL_ENGINE = "none: a trained model"
IDENTITY = "sha256 of model, records, split and seed"
_MOST_NORMS = 2000  # records whose gradients are taken for the histogram


@dataclass(slots=True)
class ModelAudit:
    """What is known of an audit before its attacks run."""

    target: Target
    split: Split
    task: Task
    workshop: Workshop
    labs: dict[str, Lab]
    trainer: Trainer | None
    notes: list[str] = field(default_factory=list)


def _identity(audit: ModelAudit, seed: int) -> str:
    """Which model, records, split and seed this is; of a callable, all but the model."""
    split = audit.split
    return entry_key(
        audit.target.key,
        split.pool.digest(),
        split.is_member.tolist(),
        split.null_is_member.tolist(),
        seed,
    )


def model_manifest(
    title: str,
    seed: int,
    sees: ThreatModel,
    audit: ModelAudit,
    factory: Callable[[], Any] | str | None,
) -> RunManifest:
    """What is known of the audit before its attacks run, as it stands in run.json."""
    members = audit.split.is_member
    return RunManifest(
        title=title,
        created=utc_now(),
        seed=seed,
        engine=MODEL_ENGINE,
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
            IDENTITY: _identity(audit, seed),
        },
    )


def game_of(audit: ModelAudit) -> MembershipGame:
    """The records of the audit as the game that attacks are scored in."""
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


def truth_of(audit: ModelAudit) -> GameTruth:
    """Who is a member, as only the scorer sees it."""
    split = audit.split
    return GameTruth(split.is_member, np.full(len(split.is_member), -1), split.null_is_member)


def model_report(
    manifest: RunManifest,
    audit: ModelAudit,
    requests: Sequence[AttackRequest],
    results: Sequence[AttackResult],
    game: Game,
) -> AuditReport:
    """The report of attacks that are done, with tables of their scores."""
    given = game_of(audit)
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


def _summary(audit: ModelAudit, results: Sequence[AttackResult], game: Game) -> ModelSummary:
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

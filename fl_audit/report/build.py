"""From a run directory to a report: reads what was recorded and found, computes nothing new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from fl_audit.detection import read_detection
from fl_audit.errors import RunDirectoryError, clean_text
from fl_audit.files import read_json
from fl_audit.game import has_game, read_game
from fl_audit.report.model import (
    AuditReport,
    GameSummary,
    ModelSummary,
    NotTested,
    RoundSummary,
    TraceSummary,
)
from fl_audit.report.reconstructed import show
from fl_audit.results import AnyAttackRecord, ReconstructionRecord
from fl_audit.run_directory import Problem, RunDirectory, RunManifest
from fl_audit.trace import RoundIndex, Trace

_SEAT = "local_"
_KINDS = ("membership", "estimate", "reconstruction", "unavailable")
_RECORDS: TypeAdapter[AnyAttackRecord] = TypeAdapter(AnyAttackRecord)


def build_report(run: RunDirectory, *, not_tested: Sequence[Mapping[str, str]]) -> AuditReport:
    """Collect a run's manifest, trace index and results.

    An interrupted run gives a report of what there is.

    Raises:
        RunDirectoryError, TraceError: If a file is damaged.
    """
    attacks = read_results(run)
    manifest = run.read_manifest()
    manifest = manifest.model_copy(
        update={"problems": [*manifest.problems, *_missing(run, manifest)]}
    )
    shown = {a.label: show(run, a) for a in attacks if isinstance(a, ReconstructionRecord)}
    return AuditReport(
        run=manifest,
        trace=_trace(run, manifest),
        game=_game(run),
        attacks=attacks,
        images={label: found.images for label, found in shown.items() if found.images},
        values={label: found.values for label, found in shown.items() if found.values},
        objectives={label: found.objectives for label, found in shown.items() if found.objectives},
        not_tested=[NotTested.model_validate(dict(entry)) for entry in not_tested],
        model=_model(run),
        detection=read_detection(run),
    )


def _model(run: RunDirectory) -> ModelSummary | None:
    """What was audited, where it was a trained model."""
    if not run.model_file.is_file():
        return None
    try:
        return ModelSummary.model_validate(read_json(run.model_file))
    except (OSError, ValueError, ValidationError) as error:
        raise RunDirectoryError(
            "model.json",
            clean_text(error, 200),
            "the file is damaged or of another version",
            "Audit the model again with `fl-audit model`.",
        ) from error


def _missing(run: RunDirectory, manifest: RunManifest) -> list[Problem]:
    """Rounds and files that should be there. `fl-audit trace verify` looks into the files, too."""
    if not run.trace.is_dir():
        return []
    trace = Trace.open(run.trace)
    problems = [Problem(where="trace", message=f"{name} is missing") for name in trace.missing()]
    if manifest.state == "done" and manifest.planned_rounds not in (None, len(trace.rounds)):
        message = (
            f"the run ended with {manifest.planned_rounds} rounds; {len(trace.rounds)} are here"
        )
        problems.append(Problem(where="trace", message=message))
    return problems


def read_results(run: RunDirectory) -> list[AnyAttackRecord]:
    """Every result saved in results/: membership, estimates, reconstructions, by label.

    Raises:
        RunDirectoryError: If one is damaged.
    """
    records = []
    for path in sorted(run.results.glob("*.json")):
        try:
            records.append(_RECORDS.validate_python(read_json(path)))
        except (OSError, ValueError, ValidationError) as error:
            raise RunDirectoryError(
                f"results/{path.name}",
                clean_text(error, 200),
                "the file is damaged or of another version",
                f"Delete it and run `fl-audit attack --attack {path.stem}` again.",
            ) from error
    return sorted(records, key=_place)


def _place(record: AnyAttackRecord) -> tuple[int, str, bool]:
    """By kind and label; what the same attack finds from a client's seat comes right after it."""
    seat = record.label.startswith(_SEAT)
    return _KINDS.index(record.kind), record.label.removeprefix(_SEAT), seat


def _trace(run: RunDirectory, manifest: RunManifest) -> TraceSummary | None:
    if not run.trace.is_dir():
        return None
    return summarise_trace(Trace.open(run.trace), controls=manifest.threat_model.controls)


def summarise_trace(trace: Trace, *, controls: Sequence[int] = ()) -> TraceSummary:
    """What was recorded, round by round. Reads the index only.

    Args:
        controls: Clients that belong to the adversary: they are no part of the honest set.
    """
    size = sum(path.stat().st_size for path in trace.directory.rglob("*") if path.is_file())
    return TraceSummary(
        digest=trace.digest(),
        rounds=[_round(trace.round(number), controls) for number in trace.rounds],
        megabytes=round(size / 1e6, 3),
    )


def _round(index: RoundIndex, controls: Sequence[int]) -> RoundSummary:
    usable = [r for r in index.replies if r.was_left_out or (r.arrays is not None and r.is_finite)]
    return RoundSummary(
        round=index.round,
        state=index.state,
        sampled=len(index.sampled),
        replied=len(usable),
        kept=sum(r.arrays is not None for r in index.replies),
        failed=len(index.replies) - len(usable),
        honest_set=len({r.client for r in usable} - set(controls)),
    )


def _game(run: RunDirectory) -> GameSummary | None:
    if not has_game(run):
        return None
    game = read_game(run)
    return GameSummary(
        rules=game.rules,
        num_candidates=len(game.candidates),
        num_null=len(game.null),
        num_auxiliary=len(game.auxiliary),
    )

"""From a run directory to a report: reads what was recorded and found, computes nothing new."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fl_audit.detection import read_detection
from fl_audit.errors import RunDirectoryError, TraceError, clean_text
from fl_audit.files import read_json
from fl_audit.game import has_game, read_game
from fl_audit.report.model import (
    AuditReport,
    GameSummary,
    ModelSummary,
    NotTested,
    ReconstructionImage,
    RoundSummary,
    TraceSummary,
)
from fl_audit.results import AnyAttackRecord, ReconstructionRecord
from fl_audit.run_directory import Problem, RunDirectory, RunManifest
from fl_audit.trace import RoundIndex, Trace

_MAX_IMAGES = 24
_RECONSTRUCTION = re.compile(r"(round_([0-9]{4,9})/client_([0-9]{1,20}))/reconstruction")
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
    images = {a.label: _images(run, a) for a in attacks if isinstance(a, ReconstructionRecord)}
    return AuditReport(
        run=manifest,
        trace=_trace(run, manifest),
        game=_game(run),
        attacks=attacks,
        images={label: found for label, found in images.items() if found},
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
    return sorted(records, key=lambda record: (_KINDS.index(record.kind), record.label))


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


def _images(run: RunDirectory, record: ReconstructionRecord) -> list[ReconstructionImage]:
    if record.arrays_file is None:
        return []
    try:
        arrays = load_file(run.results / record.arrays_file)
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise TraceError(
            f"results/{record.arrays_file}",
            clean_text(error),
            "the file is missing or damaged",
            f"Run `fl-audit attack --attack {record.attack}` again.",
        ) from error
    baseline = _png(arrays.get("baseline"))
    images: list[ReconstructionImage] = []
    for key in sorted(arrays):
        match = _RECONSTRUCTION.fullmatch(key)
        if match is None:
            continue
        place, server_round, client = match[1], int(match[2]), int(match[3])
        originals = arrays.get(f"{place}/original")
        for row, found in enumerate(arrays[key] if arrays[key].ndim else []):
            picture = _png(found)
            if picture is None:
                continue
            images.append(
                ReconstructionImage(
                    round=server_round,
                    client=client,
                    reconstruction_png=picture,
                    original_png=_png(_row(originals, row)),
                    baseline_png=baseline,
                )
            )
    return images[:_MAX_IMAGES]


def _row(images: NDArray[np.generic] | None, row: int) -> NDArray[np.generic] | None:
    return None if images is None or images.ndim == 0 or row >= len(images) else images[row]


def _png(image: NDArray[np.generic] | None) -> str | None:
    """An image (channels, height, width) in [0, 1] as PNG, or None if it is no picture."""
    if image is None or image.ndim != 3 or image.shape[0] not in (1, 3) or image.size == 0:
        return None
    from PIL import Image  # comes with matplotlib

    scaled = np.nan_to_num(image.astype(np.float64)) * 255
    pixels = np.clip(scaled, 0, 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")

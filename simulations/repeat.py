"""One scenario with several seeds: the run is what is repeated, and what intervals count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_audit.errors import InputError
from fl_audit.files import private_directory
from fl_audit.report.model import AuditReport, load_report
from fl_audit.report.seeds import LEAST_RUNS, SeedsReport, summarise_seeds
from fl_audit.run_directory import RunDirectory, refuse_run_directory
from simulations.run import Engine, Progress, refuse_other_scenario, run_scenario
from simulations.scenario import Scenario, load_scenario

_MOST_SEEDS = 1000
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def parse_seeds(text: str) -> list[int]:
    """Seeds as they are written on a command line: "0-4", "0,1,7", "0-2,7".

    Raises:
        InputError: If it is neither, names a seed twice, or too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        if match is None or last < first:
            raise InputError(
                "seeds", text, "must be numbers and ranges", 'Write "0-4", or "0,1,7".'
            )
        if len(seeds) + last - first >= _MOST_SEEDS:
            raise InputError(
                "seeds",
                text,
                f"must be at most {_MOST_SEEDS} seeds",
                "Give fewer; runs that are finished are kept, so more can be added later.",
            )
        seeds += range(first, last + 1)
    return _checked(seeds)


def run_seeds(
    scenario: Scenario | str | Path,
    seeds: Sequence[int],
    *,
    out: str | Path,
    engine: Engine = "local",
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> SeedsReport:
    """Run a scenario once for each seed, and report means over runs.

    A run that is finished and of the same scenario is kept; one that was interrupted goes on.

    Args:
        scenario: A scenario, or the path of a TOML file; its own seed has no part in it.
        seeds: At least two, each once.
        out: Folder of the runs (`seed_0`, ...), of seeds.json and of seeds.html.
        overwrite: Run everything anew.
        options: As in `run_scenario`: `ray_address`, ...

    Raises:
        InputError: If seeds are too few or repeated, `out` is itself a run directory, or a run
            that stands there is of another scenario.
        As `run_scenario`.
    """
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario)
    seeds = _checked(seeds)
    refuse_run_directory(Path(out).resolve())
    folder = private_directory(Path(out))
    given = {seed: scenario.model_copy(update={"seed": seed}) for seed in seeds}
    kept = {} if overwrite else {s: _finished(_place(folder, s), own) for s, own in given.items()}
    reports = {}
    for seed, own in given.items():
        report = kept.get(seed)
        if report is None:
            report = run_scenario(
                own,
                out=_place(folder, seed),
                engine=engine,
                overwrite=overwrite,
                resume=not overwrite,
                progress=progress,
                **options,
            )
        reports[seed] = report
    summary = summarise_seeds(reports, folders={s: _place(folder, s).name for s in seeds})
    summary.save(folder)
    return summary


def _place(folder: Path, seed: int) -> Path:
    return folder / f"seed_{seed}"


def _checked(seeds: Sequence[int]) -> list[int]:
    found = [int(seed) for seed in seeds]
    if len(found) < LEAST_RUNS or len(set(found)) < len(found) or min(found) < 0:
        raise InputError(
            "seeds",
            found,
            f"needs at least {LEAST_RUNS} seeds from 0, each once: intervals are over runs",
            "Give two or more, for example 0-4; for a single run leave out --seeds.",
        )
    return found


def _finished(place: Path, scenario: Scenario) -> AuditReport | None:
    """The report of a finished run; None if there is something left to do.

    Raises:
        InputError: If the run is of another scenario.
    """
    run = RunDirectory(place)
    if not run.scenario_file.is_file():
        return None
    refuse_other_scenario(load_scenario(run.scenario_file), scenario)
    if not (place / "report.json").is_file() or run.read_manifest().state != "done":
        return None
    return load_report(place / "report.json")

"""`fl-audit run`: simulate a federation with an adversary, and report what leaked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from fl_audit.cli.console import (
    FAILED,
    console,
    error_console,
    print_results,
    print_seeds,
    progress_bar,
)
from fl_audit.errors import AuditError, InputError, clean_text


def run(
    scenario: Annotated[Path, typer.Argument(help="Scenario, a TOML file.")],
    out: Annotated[Path, typer.Option(help="Run directory to create.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: federation.rounds=3."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete a run that stands at --out.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run at --out.")
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option(help="Run once for each seed: 0-4, or 0,1,7. --out then holds all runs."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: in this process; ray: Flower's simulation on Ray.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="host:port of an existing Ray cluster.")
    ] = None,
    cpus_per_client: Annotated[
        float | None, typer.Option(help="ray: CPUs set aside for a client at work; default 1.")
    ] = None,
    gpus_per_client: Annotated[
        float | None, typer.Option(help="ray: GPUs likewise; default 0.")
    ] = None,
) -> None:
    """Simulate a federation with an adversary, attack what it saw, and write a report."""
    options = {
        "overwrite": overwrite,
        "resume": resume,
        "engine": engine,
        "ray_address": ray_address,
        "cpus_per_client": cpus_per_client,
        "gpus_per_client": gpus_per_client,
    }
    if seeds is not None:
        run_and_show_seeds(scenario, seeds, out=out, overrides=override or [], options=options)
        return
    run_and_show(scenario, out=out, overrides=override or [], options=options)


def run_and_show_seeds(
    scenario: Path, seeds: str, *, out: Path, overrides: list[str], options: dict[str, Any]
) -> None:
    """Run a scenario file once for each seed; print means over runs and where the report is."""
    from simulations.repeat import parse_seeds, run_seeds
    from simulations.scenario import load_scenario

    if options.get("overwrite") and options.get("resume"):
        raise InputError(
            "overwrite", True, "runs cannot be deleted and resumed", "Choose one of the two."
        )
    loaded = load_scenario(scenario, overrides)
    options = {name: value for name, value in options.items() if name != "resume"}  # it always does
    with progress_bar() as progress:
        report = run_seeds(loaded, parse_seeds(seeds), out=out, progress=progress, **options)
    print_seeds(report)
    print_page(out / "seeds.html")
    if any(attack.unavailable for attack in report.attacks):
        raise typer.Exit(FAILED)


def run_and_show(
    scenario: Path, *, out: Path, overrides: list[str], options: dict[str, Any]
) -> None:
    """Run a scenario file with a progress bar; print results and where the report is."""
    from simulations.run import run_scenario
    from simulations.scenario import load_scenario

    loaded = load_scenario(scenario, overrides)
    try:
        with progress_bar() as progress:
            report = run_scenario(loaded, out=out, progress=progress, **options)
    except KeyboardInterrupt:
        if (out / "run.json").exists():
            error_console.print(
                f"Interrupted. What was recorded is kept: fl-audit report {out}, or go on with "
                f"fl-audit run {scenario} --out {out} --resume",
                markup=False,
                soft_wrap=True,
            )
        raise
    except AuditError:
        raise
    except Exception as error:
        # what the strategy or Flower raises is theirs; what was recorded is kept
        logging.getLogger("fl_audit").info("the run failed", exc_info=True)
        if not (out / "run.json").exists():
            raise
        error_console.print(
            f"The federation failed: {type(error).__name__}: {clean_text(error)}\n"
            f"What was recorded is kept: fl-audit report {out} (--verbose shows where it failed)",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(FAILED) from error
    print_results(report.attacks)
    for problem in report.run.problems:
        where = (
            problem.where if problem.round is None else f"{problem.where}, round {problem.round}"
        )
        error_console.print(f"problem in {where}: {problem.message}", markup=False)
    print_page(out / "report.html")
    if any(record.kind == "unavailable" for record in report.attacks):
        raise typer.Exit(FAILED)


def print_page(page: Path) -> None:
    """Say where the report is, on a line of its own that a terminal does not fold."""
    console.print(f"Report: {page.resolve()}", markup=False, highlight=False, soft_wrap=True)

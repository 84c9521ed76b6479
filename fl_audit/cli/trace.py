"""`fl-audit trace`: look at a recorded trace, verify it, export it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from fl_audit.cli.console import FAILED, console

app = typer.Typer(help="Look at a recorded trace, verify it, export it.", no_args_is_help=True)
Run = Annotated[Path, typer.Argument(help="Run directory.")]


class Format(StrEnum):
    """File formats of exported arrays."""

    SAFETENSORS = "safetensors"
    NPZ = "npz"


class What(StrEnum):
    """What of a client's reply is exported."""

    REPLIES = "replies"
    UPDATES = "updates"


@app.command()
def info(run: Run) -> None:
    """Show what was recorded of each round. Reads the index only."""
    from fl_audit.report.build import summarise_trace
    from fl_audit.run_directory import RunDirectory

    directory = RunDirectory.open(run)
    trace = directory.open_trace()
    summary, manifest = summarise_trace(trace), directory.read_manifest()
    own = {number: len(trace.round(number).sent) for number in trace.rounds}
    table = Table(title=escape(manifest.title), title_justify="left", box=SIMPLE_HEAD)
    for heading in ("round", "state", "sampled", "replied", "failed", "arrays kept"):
        table.add_column(heading, justify="left" if heading == "state" else "right")
    any_own = any(own.values())
    if any_own:  # a malicious server
        table.add_column("sent own model", justify="right")
    for entry in summary.rounds:
        cells = (entry.round, entry.sampled, entry.replied, entry.failed, entry.kept)
        first, *rest = (str(cell) for cell in cells)
        table.add_row(first, entry.state, *rest, *([str(own[entry.round])] if any_own else []))
    console.print(table)
    planned = manifest.planned_rounds or "unknown"
    console.print(f"state: {manifest.state}; rounds planned: {planned}", highlight=False)
    console.print(f"recording: {manifest.recording.record}; size: {summary.megabytes:.1f} MB")
    console.print(f"digest: {summary.digest}", highlight=False, soft_wrap=True)


@app.command()
def verify(run: Run) -> None:
    """Check every file and array against its sha256, and the rounds against run.json.

    Exit 1 if something differs, is missing, or is not part of the trace.
    """
    from fl_audit.run_directory import RunDirectory
    from fl_audit.verify import verify_run

    findings = verify_run(RunDirectory.open(run))
    for finding in findings:
        console.print(finding, markup=False, highlight=False, soft_wrap=True)
    if findings:
        raise typer.Exit(FAILED)
    console.print("every file and array is as recorded")


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    rounds: Annotated[list[int] | None, typer.Option("--round", help="Repeatable.")] = None,
    clients: Annotated[list[int] | None, typer.Option("--client", help="Repeatable.")] = None,
    what: Annotated[What, typer.Option(help="What of a client.")] = What.REPLIES,
    file_format: Annotated[Format, typer.Option("--format", help="File format.")] = Format.NPZ,
) -> None:
    """Copy arrays of a trace into plain files for other tools; the trace is verified first.

    No truth and no candidates are exported, but updates are personal data all the same.
    """
    from fl_audit.run_directory import RunDirectory
    from fl_audit.trace.export import export_trace

    written = export_trace(
        RunDirectory.open(run).open_trace(),
        out,
        rounds=rounds,
        clients=clients,
        updates=what is What.UPDATES,
        npz=file_format is Format.NPZ,
    )
    console.print(f"{written} files in {out}", markup=False, highlight=False, soft_wrap=True)

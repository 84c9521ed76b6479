"""`fl-audit model`: attack a trained model, from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_audit.cli.console import FAILED, error_console, print_results, progress_bar
from fl_audit.cli.run import print_page


def model(
    audit: Annotated[Path, typer.Argument(help="What to audit, a TOML file (see README).")],
    out: Annotated[Path, typer.Option(help="Run directory to create, or to go on with.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: audit.game=algorithm."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete a run that stands at --out.")
    ] = False,
) -> None:
    """Attack a trained model with membership inference, and report what it gives away."""
    from simulations.model_audit import audit_from_file

    try:
        with progress_bar() as progress:
            report = audit_from_file(
                audit, out=out, overrides=override or [], overwrite=overwrite, progress=progress
            )
    except KeyboardInterrupt:
        error_console.print(
            f"Interrupted. Shadow models that are trained are kept: fl-audit model {audit} "
            f"--out {out} goes on.",
            markup=False,
            soft_wrap=True,
        )
        raise
    print_results(report.attacks)
    print_page(out / "report.html")
    if any(record.kind == "unavailable" for record in report.attacks):
        raise typer.Exit(FAILED)

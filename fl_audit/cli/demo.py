"""`fl-audit demo`: a small federation on real digits, audited in a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Run directory to create.")] = Path("fl-audit-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete a run that stands at --out.")
    ] = False,
) -> None:
    """Audit a federation of five clients on handwritten digits, under a curious server."""
    from importlib.resources import as_file, files

    from fl_audit.cli.run import run_and_show

    with as_file(files("simulations.scenarios") / "demo.toml") as scenario:
        run_and_show(
            scenario, out=out, overrides=[f"seed={seed}"], options={"overwrite": overwrite}
        )

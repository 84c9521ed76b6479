"""`fl-audit`: one file a command. A command parses, calls one function, and prints."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from fl_audit.cli.attack import attack
from fl_audit.cli.attacks import attacks
from fl_audit.cli.console import errors
from fl_audit.cli.demo import demo
from fl_audit.cli.model import model
from fl_audit.cli.report import report
from fl_audit.cli.run import run
from fl_audit.cli.trace import app as trace
from fl_audit.siblings import check_siblings

app = typer.Typer(
    name="fl-audit",
    help="What does this federation leak, to whom, and does the claimed defence hold?",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for command in (demo, run, attack, model, report, attacks):
    app.command()(command)
app.add_typer(trace, name="trace")


def _print_version(wanted: bool) -> None:
    if wanted:
        from fl_audit import __version__

        typer.echo(f"fl-audit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what happens.")] = False,
) -> None:
    logging.getLogger("fl_audit").setLevel(logging.INFO if verbose else logging.ERROR)
    if verbose:
        logging.basicConfig(format="%(name)s: %(message)s")


def main() -> None:
    """Entry point of the console script."""
    # fl-audit sends nothing anywhere, and neither does what it starts
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    with errors():
        check_siblings()
        app()
    sys.exit(0)

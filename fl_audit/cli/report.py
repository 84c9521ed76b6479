"""`fl-audit report`: render a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_audit.cli.run import print_page

if TYPE_CHECKING:
    from fl_audit.run_directory import RunDirectory


def report(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Write report.json and report.html of a run again, also of an interrupted one."""
    from fl_audit.run_directory import RunDirectory

    print_page(render(RunDirectory.open(run)))


def render(run: RunDirectory) -> Path:
    """Write the report of a run; return the page's path."""
    from attacks.audit import not_tested
    from fl_audit.report.build import build_report, read_results

    done = [record.attack for record in read_results(run)]
    untested = not_tested(done, on_model=run.model_file.is_file())
    return build_report(run, not_tested=untested).save(run.path)

"""What commands share: where they print, how they fail, how they show progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_audit.errors import AuditError, InputError

if TYPE_CHECKING:
    from fl_audit.results import AnyAttackRecord, Estimate

console = Console()
error_console = Console(stderr=True)

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130
Progress = Callable[[str, int, int], None]


@contextmanager
def errors() -> Iterator[None]:
    """Print an error as name, value, rule, remedy, and leave with exit code 2 (Ctrl-C: 130)."""
    try:
        yield
    except AuditError as error:
        show_error(error)
        sys.exit(BAD_USAGE)
    except KeyboardInterrupt:
        error_console.print("[yellow]interrupted[/]")
        sys.exit(INTERRUPTED)


def show_error(error: AuditError) -> None:
    """Print an error in one readable block."""
    if not isinstance(error, InputError):
        error_console.print(f"[bold red]error[/] {escape(str(error))}", highlight=False)
        return
    message = escape(str(error).removesuffix(error.remedy).strip())
    error_console.print(f"[bold red]error[/] {message}", highlight=False)
    error_console.print(f"[bold]mend[/]  {escape(error.remedy)}", highlight=False)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on a terminal; nothing where there is none."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=error_console, disable=not error_console.is_terminal) as bar:
        tasks = {stage: bar.add_task(stage, total=None) for stage in ("federation", "attacks")}

        def advance(what: str, done: int, total: int) -> None:
            stage = what if what in tasks else "attacks"
            label = stage if stage == what else f"attack {what}"[:16]
            bar.update(tasks[stage], description=label, completed=done, total=total)

        yield advance


def print_results(records: Sequence[AnyAttackRecord]) -> None:
    """Every figure with its interval beside its control, then what each attack's figures mean."""
    from fl_audit.report.verdict import verdict

    table = Table(
        title="What the attacks found (95 % intervals)",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("attack", "figure", "found", "control"):
        table.add_column(heading, no_wrap=True)
    for record in records:
        for cells in _rows(record):
            table.add_row(*(escape(cell) for cell in cells))
    if table.row_count:
        console.print(table)
    for record in records:
        console.print(f"[bold]{escape(record.label)}[/] {escape(verdict(record))}", highlight=False)


def _rows(record: AnyAttackRecord) -> list[tuple[str, str, str, str]]:
    if record.kind == "unavailable":
        return []
    if record.kind == "membership":
        found = {} if record.result is None else record.result.metrics
        control = {} if record.null is None else record.null.metrics
    else:
        found, control = record.metrics, record.baseline
    return [
        (record.label if number == 0 else "", name, _text(found[name]), _text(control.get(name)))
        for number, name in enumerate(found)
    ]


def _text(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)

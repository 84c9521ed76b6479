"""What commands share: where they print, how they fail, how they show progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from fl_audit.errors import AuditError, InputError

if TYPE_CHECKING:
    from fl_audit.report.seeds import SeedsReport
    from fl_audit.results import (
        AnyAttackRecord,
        Estimate,
        EstimateRecord,
        MembershipRecord,
        ReconstructionRecord,
    )

console = Console()
error_console = Console(stderr=True)

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130
Progress = Callable[[str, int, int], None]
_SHORT_KINDS = {"out-of-distribution": "out-of-distr."}  # 80 columns
_FEW_ATTACKS = 6  # whose every figure is printed
_RATES = ("tpr@fpr=0.001", "tpr@fpr=0.01", "tpr@fpr=0.1")
_MOST_RATES = 2  # columns
_CRITERIA = {"exact": "exact (< 1e-6)", "exact_8bit": "exact (< 1/510)"}  # 80 columns
_HEADINGS = {
    "balanced_accuracy": "balanced\naccuracy",
    "auc_of_most_exposed": "auc of most\nexposed",
}


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
    """Figures with their intervals, then what each attack's figures mean.

    Of a few attacks every figure stands beside its control; many get one line each, and their
    verdicts are gathered.
    """
    from fl_audit.report.verdict import verdict

    scored = [r for r in records if r.kind == "membership" and r.result is not None]
    is_long = len(scored) > _FEW_ATTACKS
    if is_long:
        console.print(_short_table(scored))
    table = _full_table([r for r in records if r not in scored] if is_long else records)
    if table.row_count:
        console.print(table)
    _print_refused(records)
    if not is_long:
        for record in records:
            sentence = escape(verdict(record))
            console.print(f"[bold]{escape(record.label)}[/] {sentence}", highlight=False)
        return
    alike: dict[str, list[str]] = {}
    for record in records:
        alike.setdefault(verdict(record), []).append(record.label)
    for sentence, labels in alike.items():
        console.print(f"[bold]{escape(sentence)}[/]", highlight=False)
        console.print(Padding(escape(", ".join(labels)), (0, 0, 0, 2)), highlight=False)
    console.print("All figures, and their controls, stand in the report.", highlight=False)


def print_seeds(report: SeedsReport) -> None:
    """Means over runs with their intervals, then what each attack gains on the final-model one."""
    from fl_audit.report.seeds import BASELINE

    runs = len(report.seeds)
    table = _table(f"Means over {runs} runs (95 % intervals over runs)")
    table.add_column("attack", overflow="fold")
    for heading in ("figure", "mean", "control"):
        table.add_column(heading, no_wrap=True)
    for attack in report.attacks:
        # of canaries, AUC only: the page has the rest
        shown = {n: m for n, m in attack.metrics.items() if n.startswith("auc") or "(" not in n}
        for number, (name, metric) in enumerate(shown.items()):
            label = attack.label if number == 0 else ""
            for kind, short in _SHORT_KINDS.items():
                name = name.replace(kind, short)
            cells = (label, name, _text(metric.mean), _text(metric.null_mean))
            table.add_row(*map(escape, cells))
    console.print(table)
    base = {attack.label for attack in report.attacks if attack.attack == BASELINE}
    for d in report.differences:
        if d.second in base and d.second != d.first:
            line = f"AUC of {d.first} minus {d.second}: {d.mean}"
            console.print(escape(line), highlight=False)
    for attack in report.attacks:
        for seed, reason in attack.unavailable.items():
            line = f"{attack.label}, seed {seed}: not available: {reason}"
            console.print(escape(line), highlight=False)


def _full_table(records: Sequence[AnyAttackRecord]) -> Table:
    table = _table()
    table.add_column("attack", overflow="fold")  # names give way, numbers never
    for heading in ("figure", "found", "control"):
        table.add_column(heading, no_wrap=True)
    for record in records:
        for cells in _rows(record):
            table.add_row(*(escape(cell) for cell in cells))
    return table


def _short_table(records: Sequence[MembershipRecord]) -> Table:
    """A line an attack, by what it needs to have of the model."""
    from fl_audit.report.access import LEVELS, access_of_record

    names = _short_columns(records)
    table = _table()
    table.show_edge = False
    table.add_column("attack", overflow="fold")
    for name in names:
        table.add_column(escape(_HEADINGS.get(name, name)), no_wrap=True)
    for level in LEVELS:
        own = [r for r in records if access_of_record(r) == level]
        if own:
            table.add_section()
            table.add_row(f"[italic]{level}[/]")
        for record in own:
            found = {} if record.result is None else record.result.metrics
            cells = [_text(found.get(name)).replace(" ", "\n", 1) for name in names]
            table.add_row(escape(record.label), *map(escape, cells))
    return table


def _short_columns(records: Sequence[MembershipRecord]) -> list[str]:
    """AUC, TPR at the lowest rates that are resolved, and balanced accuracy: 80 columns wide."""
    found = {name for r in records if r.result is not None for name in r.result.metrics}
    rates = [name for name in _RATES if name in found][:_MOST_RATES]
    wanted = ["auc", "auc_of_most_exposed", *reversed(rates), "balanced_accuracy"]
    return [name for name in wanted if name in found]


def _table(title: str = "What the attacks found (95 % intervals)") -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )


def _rows(record: AnyAttackRecord) -> list[tuple[str, str, str, str]]:
    if record.kind == "unavailable":
        return []
    if record.kind == "membership":
        found = {} if record.result is None else record.result.metrics
        control = {} if record.null is None else record.null.metrics
        found, control = _with_slices(record, found, control)
    elif record.kind == "estimate":
        return _estimate_rows(record)
    else:
        return _reconstruction_rows(record)
    rows = [(name, _text(found[name]), _text(control.get(name))) for name in found]
    return [(record.label if place == 0 else "", *row) for place, row in enumerate(rows)]


def _reconstruction_rows(record: ReconstructionRecord) -> list[tuple[str, str, str, str]]:
    """Figures beside the guess's; below each its theory, and the gain that decides the verdict."""
    rows: list[tuple[str, str, str]] = []
    for name, found in record.metrics.items():
        digits = _significant if name == "feature_distance" else _text
        control = record.baseline.get(name)
        rows.append((_CRITERIA.get(name, name), digits(found), digits(control)))
        if name in record.expected:
            rows.append(("  theory", f"{record.expected[name]:.3f}", ""))
        if name == record.leading:
            rows.append(("  gain, decides", _text(record.gain[name]), ""))
    rows += [(_CRITERIA.get(name, name), "refused", "-") for name in record.refused]
    rows += [
        (f"{name}, theory", f"{value:.3f}", "")
        for name, value in record.expected.items()
        if name not in record.metrics
    ]
    return [(record.label if place == 0 else "", *row) for place, row in enumerate(rows)]


def _print_refused(records: Sequence[AnyAttackRecord]) -> None:
    """Why figures of reconstructions are refused: the table has no room for it."""
    for record in records:
        for name, reason in record.refused.items() if record.kind == "reconstruction" else ():
            line = f"{record.label}, {name} refused: {reason}"
            console.print(escape(line), highlight=False)


def _significant(estimate: Estimate | None) -> str:
    """Digits that count, for figures that may be far below 0.001; on two lines, to be narrow."""
    if estimate is None:
        return "-"
    return f"{estimate.value:.3g}\n[{estimate.low:.2g}, {estimate.high:.2g}]"


def _estimate_rows(record: EstimateRecord) -> list[tuple[str, str, str, str]]:
    """The imputer's or guesser's figure as control, else the null's; exact chance if known."""
    control = record.null | record.baseline
    return [
        (
            record.label if number == 0 else "",
            name,
            _text(found),
            _text(control.get(name))
            if name in control or name not in record.chance
            else f"chance {record.chance[name]:.3f}",
        )
        for number, (name, found) in enumerate(record.metrics.items())
    ]


def _with_slices(
    record: MembershipRecord, found: dict[str, Estimate], control: dict[str, Estimate]
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """With the AUC on each kind of canary: the other figures are in the report."""
    found, control = dict(found), dict(control)
    for kind, part in record.slices.items():
        name = f"auc, {_SHORT_KINDS.get(kind, kind)}"
        found[name] = part.result.metrics["auc"]
        if part.null is not None:
            control[name] = part.null.metrics["auc"]
    return found, control


def _text(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)

"""`fl-audit attack`: attack a recorded run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_audit.cli.console import FAILED, print_results, progress_bar
from fl_audit.cli.run import print_page


def attack(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    name: Annotated[list[str], typer.Option("--attack", help="Attack to run; repeatable.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Setting of the attacks, as in a scenario's table."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help='Model factory to trust and import, "module:function".'),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Name of the result; default: the attack's, made unique.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Attack a recorded run, save the results beside it, and render the report again."""
    from attacks.audit import audit_run, fresh_labels
    from attacks.devices import choose_device
    from attacks.requests import parse_attacks
    from fl_audit.cli.report import render
    from fl_audit.run_directory import RunDirectory
    from fl_audit.settings import parse_overrides

    table = parse_overrides(settings or [])
    if label is not None:
        table["label"] = label
    requests = parse_attacks([{**table, "name": each} for each in name])
    directory = RunDirectory.open(run)
    spec = directory.read_manifest().model
    if model is not None:
        from fl_audit.factories import ModelSpec

        spec = ModelSpec(factory=model, settings={} if spec is None else spec.settings)
    from simulations.rehearsals import run_rehearser
    from simulations.shadows import run_trainer

    learns = [r for r in requests if hasattr(r.settings, "num_shadow_federations")]
    trusted = model is not None
    with progress_bar() as progress:
        results = audit_run(
            run,
            attacks=fresh_labels(directory, requests),
            model=spec if model is not None else None,
            device=choose_device(device),
            trainer=run_trainer(directory, trusted=trusted)
            if any(hasattr(r.settings, "num_shadow_models") for r in requests)
            else None,
            rehearser=run_rehearser(directory, trusted=trusted) if learns else None,
            keep_unavailable=False,  # a slip of the keyboard must not stay in the report
            progress=progress,
        )
    print_results([result.record for result in results])
    print_page(render(directory))
    if any(result.record.kind == "unavailable" for result in results):
        raise typer.Exit(FAILED)

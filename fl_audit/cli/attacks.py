"""`fl-audit attacks`: what attacks there are."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from fl_audit.cli.console import console


def attacks() -> None:
    """List attacks with the threat model that each needs."""
    from attacks.registry import known_attacks, load_attack
    from fl_audit.threat_model import flag_names

    table = Table(title="Attacks", title_justify="left", show_lines=True)
    table.add_column("attack", no_wrap=True)
    table.add_column("adversary must see, and know", overflow="fold")
    table.add_column("what it uses", overflow="fold")
    for name in sorted(known_attacks()):
        spec = load_attack(name)
        sees, knows = ", ".join(flag_names(spec.requires)), ", ".join(flag_names(spec.knows))
        needs = f"{sees}\n[dim]and[/] {knows}" if knows else sees
        table.add_row(f"{name}\n[dim]{spec.kind}[/]", needs, escape(spec.summary))
    console.print(table)

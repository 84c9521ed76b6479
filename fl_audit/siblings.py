"""fl-audit's four top-level packages must come from one place."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fl_audit.errors import InputError

SIBLINGS = ("attacks", "strategies", "simulations")


def check_siblings() -> None:
    """Raise a clear error when another distribution shadows one of our packages.

    Raises:
        InputError: Naming the package and where it was found instead.
    """
    home = Path(__file__).resolve().parent.parent
    for name in SIBLINGS:
        spec = importlib.util.find_spec(name)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if found != home / name / "__init__.py":
            raise InputError(
                f"package {name!r}",
                str(found),
                f"fl-audit needs its own, at {home / name}",
                "Something else named like it comes first on sys.path: uninstall or rename it, "
                "or install fl-audit in an environment of its own.",
            )

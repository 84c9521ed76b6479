"""What every attack checks of its candidates."""

from __future__ import annotations

from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.records import Records


def require_candidates(given: AttackInput) -> Records:
    """The candidates of a membership attack.

    Raises:
        InputError: If there are none.
    """
    if given.candidates is None or len(given.candidates) == 0:
        raise InputError(
            "candidates",
            given.candidates,
            "a membership attack needs at least one record to ask about",
            "Give the records whose membership is in question.",
        )
    return given.candidates

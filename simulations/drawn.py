"""What a membership game's lots came to, as rows of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.game import GameRules
from simulations.scenario import Scenario

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Candidates and null candidates, group after group, with lots and the client in question.

    Attributes:
        kinds: Place in `fl_audit.game.KINDS` of each candidate.
    """

    rules: GameRules
    candidates: Rows
    is_member: NDArray[np.bool_]
    client: Rows
    kinds: Rows
    null: Rows
    null_client: Rows
    null_is_member: NDArray[np.bool_]
    null_kinds: Rows


def one_hot(lots: list[int], width: int) -> NDArray[np.bool_]:
    """True at each group's lot, shape (groups * width,)."""
    chosen = np.zeros((len(lots), width), dtype=np.bool_)
    chosen[np.arange(len(lots)), lots] = True
    return chosen.reshape(-1)


def candidate_holders(scenario: Scenario) -> list[int]:
    """Clients whose records are in question, ascending: not the adversary's, who knows its own.

    Raises:
        InputError: If there is none, or `game.clients` names one of the adversary's.
    """
    honest = scenario.honest_clients()
    own = sorted(set(range(scenario.federation.clients)) - set(honest))
    if not honest:
        raise InputError(
            "threat_model.controls and adversary.clients",
            own,
            "every client is the adversary's, so there is nobody to attack",
            "Leave at least one client honest.",
        )
    for client in scenario.game.clients or []:
        if client in own:
            raise InputError(
                "game.clients",
                client,
                "this client is the adversary's, who knows what it holds",
                f"Name honest clients: {honest}.",
            )
    return sorted(scenario.game.clients or honest)

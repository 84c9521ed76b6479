"""Clients that drop out or do part of their work, because the scenario says so."""

from __future__ import annotations

from simulations.scenario import Scenario


class DropOutError(Exception):
    """A client that leaves in the middle of a round."""


def share_of_work(scenario: Scenario, server_round: int, client: int) -> float:
    """How much of its steps a client does in a round: 1 for all, 0 if it drops out.

    Depends on (seed, round, client) only, so that the scorer can draw the same.
    """
    faults = scenario.faults
    drops, straggles = scenario.seeds("faults", server_round, client).random(2)
    if drops < faults.drop_out:
        return 0.0
    return faults.straggler_share if straggles < faults.straggler else 1.0

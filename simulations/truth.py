"""What clients trained on in each round: drawn again, from the same generators, for the scorer.

A client's draws depend on (seed, round, client) alone, so nothing has to be smuggled out of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fl_audit.local_training import LocalTraining
from fl_audit.targets import ClientTargets
from simulations.defences import local_trainings
from simulations.faults import share_of_work
from simulations.population import Population
from simulations.scenario import Scenario
from simulations.training import planned_batches


def rows_used(
    scenario: Scenario, population: Population, server_round: int, client: int
) -> NDArray[np.int64]:
    """Rows of a client's records that go into its update of a round, if it is sampled."""
    share = share_of_work(scenario, server_round, client)
    training, num = local_trainings(scenario).of(client), len(population.clients[client])
    if share == 0 or _moves_nothing(training, server_round):
        return np.empty(0, dtype=np.int64)
    if training.algorithm == "fedavg" and share == 1:
        return np.arange(num)  # every epoch touches every record
    batches = planned_batches(
        num,
        training,
        rng=scenario.seeds("client", server_round, client),
        share=share,
    )
    return np.unique(np.concatenate(batches))


def candidate_uses(scenario: Scenario, population: Population) -> NDArray[np.bool_]:
    """Which candidates are trained on in which round, if their client is sampled and answers.

    In a game about persons: other records of whose person are.

    Returns:
        Shape (candidates, rounds); never True for a non-member.
    """
    ids, truth = population.game.candidates.ids, population.truth
    users = population.game.users
    who = ids if users is None else users
    rounds = range(1, scenario.federation.rounds + 1)
    uses = np.zeros((len(ids), len(rounds)), dtype=np.bool_)
    trainings, faults = local_trainings(scenario), scenario.faults
    for client in np.unique(truth.client).tolist():
        here = np.flatnonzero(truth.client == client)
        training = trainings.of(client)
        held = population.clients[client].ids
        if users is not None and population.client_users is not None:
            held = population.client_users[client]
        if training.algorithm == "fedavg" and not (faults.drop_out or faults.straggler):
            moves = np.array([not _moves_nothing(training, number) for number in rounds])
            uses[here] = truth.is_member[here, None] & moves  # every epoch touches every record
            continue
        for server_round in rounds:
            rows = rows_used(scenario, population, server_round, client)
            uses[here, server_round - 1] = np.isin(who[here], held[rows])
    return uses


def reconstruction_targets(scenario: Scenario, population: Population) -> Iterator[ClientTargets]:
    """What each client trains on in each round, if it is sampled and answers. One at a time."""
    num_rounds = scenario.federation.rounds
    for client, records in enumerate(population.clients):
        used = np.zeros((num_rounds, len(records)), dtype=np.bool_)
        for place in range(num_rounds):
            used[place, rows_used(scenario, population, place + 1, client)] = True
        ever = np.flatnonzero(used.any(axis=0))
        yield ClientTargets(
            client,
            np.asarray(records.inputs[ever], dtype=np.float32),
            records.labels[ever],
            used[:, ever],
        )


def _moves_nothing(training: LocalTraining, server_round: int) -> bool:
    """Whether a round's learning rate is 0 in the model's precision: nothing goes into its update.

    A cosine schedule ends there, and a decay of many rounds underflows.
    """
    return float(np.float32(training.learning_rate_in(server_round))) == 0

"""ReLU trap, read out: did the neuron that fires for this record only move in the client's hands?

The attack finds the traps itself: first-layer neurons that differ between the model that a client
received and the global model, and the candidates that fire them. A record that was trained on
moves every trap that it fires, so a candidate counts as a member as far as the trap of its that
moved least did. One round of one client is enough.

References:
    Pichler, Romanelli, Vega, Piantanida, "Perfectly accurate membership inference by a dishonest
    central server in federated learning", 2022. https://arxiv.org/abs/2203.16463
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.answers import RoundSettings
from attacks.federated.rounds import chosen_rounds
from attacks.federated.traps import fires, movement, planted_neurons
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Observation
from fl_audit.trace import TraceView

_Values = NDArray[np.float64]
_MOST_FIRED = 0.5  # a neuron that fires for more of the candidates than this is no trap


def relu_trap_scores(
    view: TraceView,
    candidates: Records,
    *,
    asked: NDArray[np.int64] | None = None,
    rounds: list[int] | None = None,
) -> tuple[_Values, tuple[str, ...]]:
    """How far each candidate's trap moved in a client's hands.

    Args:
        asked: Client in question for each candidate, shape (n,); None: any client.
        rounds: Rounds to use; all by default.

    Returns:
        Shape (n,), share of the neuron's norm, largest over rounds and clients; 0 = the trap did
        not move at all, so the record was not trained on while it was set. A candidate without a
        trap has half of the smallest movement there was: nothing speaks for or against it, and a
        note says how many there are.

    Raises:
        ObservationError: If the view does not grant the models.
        InputError: If no candidate had a trap, or the model's first layer is not dense.
    """
    best, is_set = np.full(len(candidates), -np.inf), np.zeros(len(candidates), dtype=np.bool_)
    for _, client, moved in _movements(view, candidates, rounds):
        counts = np.isfinite(moved) & (True if asked is None else asked == client)
        best[counts] = np.maximum(best[counts], moved[counts])
        is_set |= counts
    if not is_set.any():
        raise InputError(
            "received models",
            "none",
            "no client received a model with a trap for a candidate",
            'Run the federation with [adversary] name = "relu_trap".',
        )
    notes = []
    if not is_set.all():
        moved = best[is_set & (best > 0)]
        best[~is_set] = moved.min() / 2 if moved.size else 0.0
        notes.append(
            f"{int((~is_set).sum())} of {len(candidates)} candidates (null included) had no trap "
            "in a round that was answered: their scores say nothing. More rounds, or a larger "
            "adversary.traps, would reach them."
        )
    return best, tuple(notes)


def _movements(
    view: TraceView, candidates: Records, rounds: list[int] | None
) -> Iterator[tuple[int, int, _Values]]:
    """(round, client, movement of the trap that moved least, shape (n,); inf without a trap)."""
    inputs = np.asarray(candidates.inputs[:]).reshape(len(candidates), -1)
    for number in chosen_rounds(view, rounds):
        honest = view.global_model(number)
        for sent, clients in view.received_groups(number):
            neurons = planted_neurons(sent, honest)
            firing = fires(sent, inputs, neurons)
            is_trap = firing.any(axis=0) & (firing.mean(axis=0) <= _MOST_FIRED)
            neurons, firing = neurons[is_trap], firing[:, is_trap]
            if not len(neurons):
                continue
            for client in clients:
                moved = movement(sent, view.client_model(number, client), neurons)
                yield number, client, np.where(firing, moved, np.inf).min(axis=1)


def run(given: AttackInput) -> MembershipScores:
    """Movement of each candidate's trap, over all rounds and in each."""
    candidates = require_candidates(given)
    view, rounds = given.view, given.settings.rounds
    scores, notes = relu_trap_scores(view, candidates, asked=given.asked, rounds=rounds)
    return MembershipScores(scores, (*notes, *view.unusable))


ATTACK = AttackSpec(
    name="relu_trap",
    kind="membership",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    run=run,
    reference="https://arxiv.org/abs/2203.16463",
    summary="A planted neuron that fires for one record only moves if the client trains on it",
    settings=RoundSettings,
    activity="malicious",
)

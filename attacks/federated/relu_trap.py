"""ReLU trap, read out: did the neuron that fires for this record only move in the client's hands?

The attack finds the traps itself: first-layer neurons that differ between the model that a client
received and the global model, and the candidates that fire them. A record that was trained on
moves every trap that it fires, and lies in the span of these movements: a trap that did not move is
proof of absence, and a record that lies in the span entirely was there. One round is enough.

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
from attacks.federated.traps import explained, fires, movement, planted_neurons
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Observation
from fl_audit.trace import TraceView

_Values = NDArray[np.float64]
_UNKNOWN = 0.5  # score of a candidate without a trap
_MOST_FIRED = 0.5  # a neuron that fires for more of the candidates than this is no trap


def relu_trap_scores(
    view: TraceView,
    candidates: Records,
    *,
    asked: NDArray[np.int64] | None = None,
    rounds: list[int] | None = None,
) -> tuple[_Values, tuple[str, ...]]:
    """How far the movement of a candidate's traps in a client's hands is explained by it.

    Args:
        asked: Client in question for each candidate, shape (n,); None: any client.
        rounds: Rounds to use; all by default.

    Returns:
        Shape (n,), in [0, 1], largest over rounds and clients: 1 = the record was trained on; 0 = a
        trap did not move at all, so it was not while they were set; between, others fired them.
        A candidate without a trap has 0.5: nothing speaks for or against it, and a note says how
        many there are.

    Raises:
        ObservationError: If the view does not grant the models.
        InputError: If no candidate had a trap, or the model's first layer is not dense.
    """
    best, is_set = np.full(len(candidates), -np.inf), np.zeros(len(candidates), dtype=np.bool_)
    for client, said in _answers(view, candidates, rounds):
        counts = np.isfinite(said)
        if asked is not None:
            counts &= asked == client
        best[counts] = np.maximum(best[counts], said[counts])
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
        best[~is_set] = _UNKNOWN
        notes.append(
            f"{int((~is_set).sum())} of {len(candidates)} candidates (null included) had no trap "
            "in a round that was answered: their scores say nothing. More rounds, or a larger "
            "adversary.traps, would reach them."
        )
    return best, tuple(notes)


def _answers(
    view: TraceView, candidates: Records, rounds: list[int] | None
) -> Iterator[tuple[int, _Values]]:
    """(client, what its reply of one round says of each candidate, shape (n,); NaN = nothing)."""
    inputs = np.asarray(candidates.inputs[:]).reshape(len(candidates), -1).astype(np.float64)
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
                back = view.client_model(number, client)
                has_moved = movement(sent, back, neurons) > 0
                said = np.where(firing.any(axis=1), 0.0, np.nan)
                for row in np.flatnonzero(firing.any(axis=1) & (has_moved | ~firing).all(axis=1)):
                    said[row] = explained(sent, back, neurons[firing[row]], inputs[row])
                yield client, said


def run(given: AttackInput) -> MembershipScores:
    """What each candidate's traps say, over all rounds."""
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
    summary="Planted neurons that fire for one record move along it if the client trains on it",
    settings=RoundSettings,
    activity="malicious",
)

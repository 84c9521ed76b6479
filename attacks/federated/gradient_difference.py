"""Gradient difference: does taking a candidate's gradient out of an update make it smaller?

With D = (received - sent back) / learning rate, the pseudo-gradient, and g the candidate's
gradient, the score is ||D||^2 - ||D - g||^2 = 2 <D, g> - ||g||^2: positive if g is a part of D.

References:
    Li, Li, Ribeiro, "Effective passive membership inference attacks in federated learning against
    overparameterized models", ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.answers import LayerSettings, RoundValues, answer, average, both_seats, where
from attacks.federated.rounds import Source, Where, alignments
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge
from fl_audit.trace import TraceView


class Settings(LayerSettings):
    """Rounds, layers, and the learning rate that updates are divided by."""

    learning_rate: float | None = None
    """None: each client's own, as recorded."""


def gradient_difference_scores(
    view: TraceView,
    candidates: Records,
    *,
    learning_rate: float | None = None,
    asked: NDArray[np.int64] | None = None,
    layers: Sequence[str] | None = None,
    rounds: Sequence[int] | None = None,
    source: Source = "clients",
    device: str = "cpu",
) -> NDArray[np.float64]:
    """2 <D, g> - ||g||^2 for each candidate, averaged over rounds.

    Args:
        learning_rate: Updates are divided by it; None: each client's own, as recorded (needs
            LOCAL_TRAINING).
        asked, layers, rounds, source: As for `cosine_scores`.

    Returns:
        Shape (n,), squared gradient norm units; higher = more likely a member.

    Raises:
        ObservationError: If the view does not grant the updates or the learning rate.
        InputError: If there is no signal, or the learning rate is not positive or not recorded.
    """
    look = Where(layers=layers, rounds=rounds, source=source, device=device)
    found = average(_differences(view, candidates, learning_rate, **look))
    return answer(found.clients, found.means, asked)


def _differences(
    view: TraceView, candidates: Records, learning_rate: float | None, **look: Unpack[Where]
) -> Iterator[RoundValues]:
    if learning_rate is not None and not learning_rate > 0:
        raise InputError(
            "learning_rate",
            learning_rate,
            "must be positive",
            "Give the clients' learning rate, or leave it out where the run recorded it.",
        )
    for found in alignments(view, candidates, **look):
        rates = _rates(view, found.round, found.clients, learning_rate)
        keep = [row for row, client in enumerate(found.clients) if rates[client] > 0]
        if not keep:
            continue  # the schedule ended at 0: nothing was trained
        clients = tuple(found.clients[row] for row in keep)
        scale = np.array([rates[client] for client in clients])[:, None]
        dots = found.dots.sum(axis=0)[keep] / scale
        squares = found.gradient_squares.sum(axis=0)
        squares = squares if len(squares) == 1 else squares[keep]
        yield found.round, clients, 2 * dots - squares


def _rates(
    view: TraceView, server_round: int, clients: Sequence[int], learning_rate: float | None
) -> Mapping[int, float]:
    if learning_rate is not None:
        return dict.fromkeys(clients, learning_rate)
    return {c: view.local_training(c).learning_rate_in(server_round) for c in clients}


def _values(given: AttackInput, source: Source) -> Iterator[RoundValues]:
    rate, look = given.settings.learning_rate, where(given, source)
    return _differences(given.view, require_candidates(given), rate, **look)


ATTACK, LOCAL_ATTACK = both_seats(
    "gradient_difference",
    _values,
    knows=Knowledge.LABELS | Knowledge.LOCAL_TRAINING,
    reference="https://openreview.net/forum?id=QsCSLPP55Ku",
    summary="Taking a record's gradient out of its client's update makes the update smaller",
    local_summary="Taking a record's gradient out of the global step makes the step smaller",
    settings=Settings,
)

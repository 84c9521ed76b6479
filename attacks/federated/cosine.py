"""Cosine between an update and a candidate's gradient.

In a wide network near a good minimum, gradients of different examples are nearly orthogonal, so
an update -lr * (sum of members' gradients) has a positive cosine with the negative gradient of a
member and none with that of a non-member.

References:
    Li, Li, Ribeiro, "Effective passive membership inference attacks in federated learning against
    overparameterized models", ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.answers import (
    LayerSettings,
    RoundValues,
    answer,
    average,
    both_seats,
    where,
)
from attacks.federated.rounds import Source, Where, alignments
from fl_audit.attack_spec import AttackInput
from fl_audit.records import Records
from fl_audit.trace import TraceView


def cosine_scores(
    view: TraceView,
    candidates: Records,
    *,
    asked: NDArray[np.int64] | None = None,
    layers: Sequence[str] | None = None,
    rounds: Sequence[int] | None = None,
    source: Source = "clients",
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Cosine of each candidate's negative gradient with updates, averaged over rounds.

    Args:
        asked: Client in question for each candidate, shape (n,); None: any client, so the
            largest over clients counts.
        layers: Parameter names to compare; all by default.
        rounds: Rounds to use; all by default.
        source: Each client's update, or the sum of the honest set's.

    Returns:
        Scores in [-1, 1], shape (n,); higher = more likely a member.

    Raises:
        ObservationError: If the view does not grant the updates.
        InputError: If no client sent a usable, non-zero update ("no signal"), or a layer or round
            is unknown.
    """
    look = Where(layers=layers, rounds=rounds, source=source, device=device)
    found = average(_cosines(view, candidates, **look))
    return answer(found.clients, found.means, asked)


def _cosines(view: TraceView, candidates: Records, **look: Unpack[Where]) -> Iterator[RoundValues]:
    for found in alignments(view, candidates, **look):
        yield found.round, found.clients, found.cosines()


def _values(given: AttackInput, source: Source) -> Iterator[RoundValues]:
    return _cosines(given.view, require_candidates(given), **where(given, source))


ATTACK, LOCAL_ATTACK = both_seats(
    "cosine",
    _values,
    reference="https://openreview.net/forum?id=QsCSLPP55Ku",
    summary="A client's update points along the gradients of its own records",
    local_summary="The global model's step points along the gradients of records trained on",
    settings=LayerSettings,
)

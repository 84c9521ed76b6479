"""Loss series: a client's model fits the records it was trained on better, round after round.

References:
    Yeom et al., "Privacy risk in machine learning: analyzing the connection to overfitting", CSF
    2018, for one model; averaged over the models that a federation shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from attacks.federated.answers import RoundSettings, RoundValues, answer, average, both_seats
from attacks.federated.rounds import Source, losses
from fl_audit.attack_spec import AttackInput
from fl_audit.records import Records
from fl_audit.trace import TraceView


def loss_series_scores(
    view: TraceView,
    candidates: Records,
    *,
    asked: NDArray[np.int64] | None = None,
    rounds: Sequence[int] | None = None,
    source: Source = "clients",
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Minus the cross-entropy at the model that each client sent back, averaged over rounds.

    Args:
        asked: Client in question for each candidate, shape (n,); None: any client, so the
            largest over clients counts.
        rounds: Rounds to use; all by default.
        source: Each client's model, or the global model that came of all.

    Returns:
        Nats, shape (n,); higher = more likely a member.

    Raises:
        ObservationError: If the view does not grant the models.
        InputError: If there is no model to ask, or the candidates do not fit it.
    """
    found = average(_series(view, candidates, rounds, source, device))
    return answer(found.clients, found.means, asked)


def _series(
    view: TraceView,
    candidates: Records,
    rounds: Sequence[int] | None,
    source: Source,
    device: str,
) -> Iterator[RoundValues]:
    for number, clients, values in losses(
        view, candidates, rounds=rounds, source=source, device=device
    ):
        yield number, clients, -values


def _values(given: AttackInput, source: Source) -> Iterator[RoundValues]:
    assert given.candidates is not None
    return _series(given.view, given.candidates, given.settings.rounds, source, given.device)


ATTACK, LOCAL_ATTACK = both_seats(
    "loss_series",
    _values,
    reference="https://arxiv.org/abs/1709.01604",
    summary="The models that clients send back have a small loss on their own records",
    local_summary="The global model of each round has a small loss on records trained on",
    settings=RoundSettings,
)

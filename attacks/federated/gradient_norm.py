"""Gradient norm: where a model has learnt a record, the record's gradient is small.

References:
    Nasr, Shokri, Houmansadr, "Comprehensive privacy analysis of deep learning", S&P 2019,
    section VI-A (gradient norms of members and non-members).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.answers import LayerSettings, RoundValues, answer, average, both_seats, where
from attacks.federated.gradients import per_example_gradients
from attacks.federated.rounds import SUM, Source, Where, chosen_rounds, parameter_names
from fl_audit.attack_spec import AttackInput
from fl_audit.records import Records
from fl_audit.trace import TraceView


def gradient_norm_scores(
    view: TraceView,
    candidates: Records,
    *,
    asked: NDArray[np.int64] | None = None,
    layers: Sequence[str] | None = None,
    rounds: Sequence[int] | None = None,
    source: Source = "clients",
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Minus the norm of each candidate's gradient at the model sent back, averaged over rounds.

    Args:
        asked, layers, rounds: As for `cosine_scores`.
        source: Each client's model, or the global model that came of all.

    Returns:
        Shape (n,), <= 0; higher = more likely a member.

    Raises:
        ObservationError: If the view does not grant the models.
        InputError: If there is no model to ask, or the candidates do not fit it.
    """
    look = Where(layers=layers, rounds=rounds, source=source, device=device)
    found = average(_norms(view, candidates, **look))
    return answer(found.clients, found.means, asked)


def _norms(view: TraceView, candidates: Records, **look: Unpack[Where]) -> Iterator[RoundValues]:
    module = view.architecture()
    names = parameter_names(module, look["layers"])
    for number in chosen_rounds(view, look["rounds"]):
        models: list[Mapping[str, NDArray[np.generic]]]
        clients: tuple[int, ...]
        if look["source"] == "sum":
            after = view.aggregate(number)
            clients, models = ((SUM,), [after]) if after is not None else ((), [])
        else:
            clients = view.clients(number)
            models = [view.client_model(number, client) for client in clients]
        rows = [
            _norm(module, model, candidates, names=names, device=look["device"]) for model in models
        ]
        kept = [place for place, row in enumerate(rows) if np.isfinite(row).all()]
        if kept:
            yield number, tuple(clients[i] for i in kept), -np.stack([rows[i] for i in kept])


def _norm(
    module: torch.nn.Module,
    model: Mapping[str, NDArray[np.generic]],
    candidates: Records,
    *,
    names: Sequence[str],
    device: str,
) -> NDArray[np.float64]:
    squares = np.zeros(len(candidates))
    for rows, gradients in per_example_gradients(module, model, candidates, device=device):
        for name in names:
            squares[rows] += gradients[name].flatten(1).double().square().sum(1).cpu().numpy()
    result: NDArray[np.float64] = np.sqrt(squares)
    return result


def _values(given: AttackInput, source: Source) -> Iterator[RoundValues]:
    return _norms(given.view, require_candidates(given), **where(given, source))


ATTACK, LOCAL_ATTACK = both_seats(
    "gradient_norm",
    _values,
    reference="https://arxiv.org/abs/1812.00910",
    summary="At the models that clients send back, their own records have small gradients",
    local_summary="At the global model of each round, records trained on have small gradients",
    settings=LayerSettings,
)

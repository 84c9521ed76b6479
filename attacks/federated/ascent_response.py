"""Ascent response: a client that holds a record pulls down the loss that the server pushed up.

The server sends a client a model that is bad at the targets (gradient ascent). Whoever trains on a
target makes the model good at it again; whoever does not, hardly does.

References:
    Nasr, Shokri, Houmansadr, "Comprehensive privacy analysis of deep learning", IEEE S&P 2019,
    section III-C (active attacks). https://arxiv.org/abs/1812.00910
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.active import loss_drop
from attacks.federated.answers import RoundSettings, RoundValues, answer, average, scores_of
from attacks.federated.rounds import chosen_rounds, losses, record_losses
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView

_HONEST = (
    "No client received another model than the global one: as far as the trace shows, no loss was "
    "pushed up, and scores are drops of the loss in ordinary training."
)


def ascent_response_scores(
    view: TraceView,
    candidates: Records,
    *,
    asked: NDArray[np.int64] | None = None,
    rounds: Sequence[int] | None = None,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Drop of the cross-entropy from the model that a client received to the one it sent back,
    averaged over rounds.

    Args:
        asked: Client in question for each candidate, shape (n,); None: any client, so the
            largest over clients counts.
        rounds: Rounds to use; all by default.

    Returns:
        Nats, shape (n,); higher = more likely a member.

    Raises:
        ObservationError: If the view does not grant the models.
        InputError: If no client sent a usable model, or the candidates do not fit it.
    """
    found = average(_drops(view, candidates, rounds, device))
    return answer(found.clients, found.means, asked)


def _drops(
    view: TraceView, candidates: Records, rounds: Sequence[int] | None, device: str
) -> Iterator[RoundValues]:
    module = view.architecture()
    after = losses(view, candidates, rounds=chosen_rounds(view, rounds), device=device)
    for number, clients, back in after:
        before: dict[int, NDArray[np.float64]] = {}
        for model, group in view.received_groups(number):
            received = record_losses(module, model, candidates, device=device)
            before |= dict.fromkeys(group, received)
        drops = loss_drop(np.stack([before[client] for client in clients]), back)
        kept = np.flatnonzero(np.isfinite(drops).all(axis=1))
        if len(kept):
            yield number, tuple(clients[row] for row in kept), drops[kept]


def run(given: AttackInput) -> MembershipScores:
    """Ascent response over the chosen rounds."""
    candidates = require_candidates(given)
    view, rounds = given.view, given.settings.rounds
    scores = scores_of(average(_drops(view, candidates, rounds, given.device)), given.asked, view)
    if _sent_another_model(view, rounds):
        return scores
    return replace(scores, notes=(_HONEST, *scores.notes))


def _sent_another_model(view: TraceView, rounds: Sequence[int] | None) -> bool:
    """Whether any client with an update received another model than the global one."""
    for number in chosen_rounds(view, rounds):
        shared = view.global_model(number)
        for model, _ in view.received_groups(number):
            if any(not np.array_equal(model[n], shared[n], equal_nan=True) for n in shared):
                return True
    return False


ATTACK = AttackSpec(
    name="ascent_response",
    kind="membership",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    knows=Knowledge.LABELS,
    run=run,
    reference="https://arxiv.org/abs/1812.00910",
    summary="A client pulls the loss of its own records down after the server pushed it up",
    settings=RoundSettings,
    activity="malicious",
)

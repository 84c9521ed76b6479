"""Ascent response from a client's seat: whose loss falls again after it was pushed up.

A malicious client climbs the loss of the targets each round (`gradient_ascent`); the owners of
members pull theirs down again, nobody pulls at a non-member. A client sees the global model only:
the loss of each target before and after a round. How far it falls depends on how high it stood, so
the score is what the height does not explain: the residual of a straight line through all targets'
(loss before, loss after), averaged over rounds. Nothing is fitted to the truth.

References:
    Nasr, Shokri, Houmansadr, "Comprehensive privacy analysis of deep learning", IEEE S&P 2019,
    section III-C (active local attacker). https://arxiv.org/abs/1812.00910
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.answers import RoundSettings, RoundValues, answer, average, scores_of
from attacks.federated.rounds import SUM, chosen_rounds, losses, record_losses
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView


def local_ascent_response_scores(
    view: TraceView,
    candidates: Records,
    *,
    rounds: Sequence[int] | None = None,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """How far below the line each target's loss ends, averaged over rounds.

    Args:
        candidates: n records; the line is drawn through all of them.
        rounds: Rounds to use; all by default.

    Returns:
        Nats, shape (n,); higher = more likely a member.

    Raises:
        ObservationError: If the view does not grant the global models.
        InputError: If no round has a finite outcome, or the candidates do not fit the model.
    """
    found = average(_responses(view, candidates, rounds, device))
    return answer(found.clients, found.means, None)


def response(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minus the residual of `after` on a straight line in `before` (least squares), shape (n,).

    Args:
        before: Loss of each target at the model that went out, nats, shape (n,).
        after: Loss at the next global model.

    Returns:
        Nats; higher = the loss ended lower than others that stood as high.
    """
    centred = before - before.mean()
    power = float(centred @ centred)
    slope = float(centred @ after) / power if power > 0 else 0.0
    below: NDArray[np.float64] = after.mean() + slope * centred - after
    return below


def _responses(
    view: TraceView, candidates: Records, rounds: Sequence[int] | None, device: str
) -> Iterator[RoundValues]:
    module = view.architecture()
    chosen = chosen_rounds(view, rounds)
    outcomes = losses(view, candidates, rounds=chosen, source="sum", device=device)
    for number, _, after in outcomes:
        before = record_losses(module, view.global_model(number), candidates, device=device)
        if np.isfinite(before).all() and np.isfinite(after).all():
            yield number, (SUM,), response(before, after[0])[None]


def _run(given: AttackInput) -> MembershipScores:
    candidates = require_candidates(given)
    values = _responses(given.view, candidates, given.settings.rounds, given.device)
    return scores_of(average(values), None, given.view)


ATTACK = AttackSpec(
    name="local_ascent_response",
    kind="membership",
    requires=Observation.AGGREGATE | Observation.GLOBAL_MODEL,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://arxiv.org/abs/1812.00910",
    summary="The loss of a record trained on falls again after a malicious client pushed it up",
    settings=RoundSettings,
    activity="malicious",
)

"""Loss threshold on the final model: members have lower loss.

References:
    Yeom et al., "Privacy Risk in Machine Learning", CSF 2018. https://arxiv.org/abs/1709.01604
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from attacks.candidates import require_candidates
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation


def loss_scores(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Negative cross-entropy of each record.

    Args:
        logits: Answers of the target model, shape (n, classes).
        labels: True classes, shape (n,).

    Returns:
        Scores in nats, shape (n,), at most 0; higher = more likely a member.

    Raises:
        InputError: If a logit is not finite (names the record) or a label is no class.
    """
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise InputError(
            f"logits of record {bad[0]}",
            logits[bad[0]],
            "must be finite",
            "The model answers NaN or infinity: check that its weights are finite.",
        )
    outside = np.flatnonzero((labels < 0) | (labels >= logits.shape[1]))
    if outside.size:
        raise InputError(
            f"label of record {outside[0]}",
            int(labels[outside[0]]),
            f"must be a class from 0 to {logits.shape[1] - 1}",
            "Use the labels that the model was trained with.",
        )
    true = logits[np.arange(len(labels)), labels]
    scores: NDArray[np.float64] = true - logsumexp(logits, axis=1)
    return scores


def _run(given: AttackInput) -> MembershipScores:
    candidates = require_candidates(given)
    logits = given.view.query(candidates.inputs, device=given.device)
    return MembershipScores(loss_scores(logits, candidates.labels))


ATTACK = AttackSpec(
    name="loss_threshold",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://arxiv.org/abs/1709.01604",
    summary="Members have lower loss under the final model",
)

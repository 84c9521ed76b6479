"""Loss threshold on the final model: members have lower loss.

References:
    Yeom et al., "Privacy Risk in Machine Learning", CSF 2018. https://arxiv.org/abs/1709.01604
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.membership.signals import check_logits, true_log_probability
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
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
    check_logits(logits, labels)
    return true_log_probability(logits, labels)


def _run(given: AttackInput) -> MembershipScores:
    lab = require_lab(given)
    return MembershipScores(loss_scores(lab.logits(), lab.candidates.labels))


ATTACK = AttackSpec(
    name="loss_threshold",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://arxiv.org/abs/1709.01604",
    summary="Members have lower loss under the final model",
)

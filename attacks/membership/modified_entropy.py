"""Modified-entropy threshold: low only where the model is sure, and right.

References:
    Song & Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX
    Security 2021, equation 6. https://arxiv.org/abs/2003.10595

Their thresholds differ by class: `{name = "population", signal = "modified_entropy", per =
"class"}` is that attack.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.membership.signals import check_logits, negative_modified_entropy
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.threat_model import Knowledge, Observation


def modified_entropy_scores(
    logits: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Minus the modified entropy: (1 - p_y) log p_y + sum over other classes of p_i log(1 - p_i).

    Args:
        logits: Answers of the target model, shape (n, classes).
        labels: True classes, shape (n,).

    Returns:
        Scores in nats, shape (n,), at most 0; higher = more likely a member.

    Raises:
        InputError: If a logit is not finite (names the record) or a label is no class.
    """
    check_logits(logits, labels)
    return negative_modified_entropy(logits, labels)


def _run(given: AttackInput) -> MembershipScores:
    lab = require_lab(given)
    return MembershipScores(modified_entropy_scores(lab.logits(), lab.candidates.labels))


ATTACK = AttackSpec(
    name="modified_entropy",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://arxiv.org/abs/2003.10595",
    summary="The final model is surer of the true class, and of it only, on members",
)

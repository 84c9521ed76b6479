"""Confidence threshold: a model is surer of its answer on records that it was trained on.

It needs no label: whether the answer is right is not asked.

References:
    Salem et al., "ML-Leaks: Model and Data Independent Membership Inference Attacks and Defenses on
    Machine Learning Models", NDSS 2019, adversary 3. https://arxiv.org/abs/1806.01246
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.membership.quantiles import task_signal
from attacks.membership.signals import check_logits, logit_confidence
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.threat_model import Observation


def confidence_scores(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds of the answer's probability p: log p - log(1 - p).

    They rank as p does, and still differ where p rounds to 1.

    Args:
        logits: Answers of the target model, shape (n, classes), at least two classes.

    Returns:
        Scores in nats, shape (n,); higher = more likely a member.

    Raises:
        InputError: If a logit is not finite (names the record).
    """
    answer = logits.argmax(axis=-1)
    check_logits(logits, answer)
    return logit_confidence(logits, answer)


def _run(given: AttackInput) -> MembershipScores:
    lab = require_lab(given)
    task_signal("confidence", lab.task)  # refuses regression
    return MembershipScores(confidence_scores(lab.logits()))


ATTACK = AttackSpec(
    name="confidence",
    kind="membership",
    requires=Observation.LOGITS,
    run=_run,
    reference="https://arxiv.org/abs/1806.01246",
    summary="The final model is surer of its answer on members; needs no labels",
)

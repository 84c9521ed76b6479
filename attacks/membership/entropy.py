"""Entropy threshold: the answer on a record that was trained on spreads less over the classes.

It needs no label: whether the answer is right is not asked.

References:
    Salem et al., NDSS 2019, adversary 3. https://arxiv.org/abs/1806.01246
    Song & Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX
    Security 2021. https://arxiv.org/abs/2003.10595
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.membership.quantiles import task_signal
from attacks.membership.signals import check_logits, negative_entropy
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.threat_model import Observation


def entropy_scores(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minus the entropy of each answer.

    Args:
        logits: Answers of the target model, shape (n, classes).

    Returns:
        Scores in nats, shape (n,), from -log(classes) to 0; higher = more likely a member.

    Raises:
        InputError: If a logit is not finite (names the record).
    """
    answer = logits.argmax(axis=-1)
    check_logits(logits, answer)
    return negative_entropy(logits, answer)


def _run(given: AttackInput) -> MembershipScores:
    lab = require_lab(given)
    task_signal("entropy", lab.task)  # refuses regression
    return MembershipScores(entropy_scores(lab.logits()))


ATTACK = AttackSpec(
    name="entropy",
    kind="membership",
    requires=Observation.LOGITS,
    run=_run,
    reference="https://arxiv.org/abs/2003.10595",
    summary="The final model's answers on members have lower entropy; needs no labels",
)

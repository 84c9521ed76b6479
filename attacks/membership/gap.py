"""Gap attack: what the model classifies rightly is a member.

The baseline that any other label-only attack has to beat: its balanced accuracy is 1/2 plus half of
the gap between training and test accuracy.

References:
    Yeom et al., "Privacy Risk in Machine Learning", CSF 2018. https://arxiv.org/abs/1709.01604
    Choquette-Choo et al., "Label-Only Membership Inference Attacks", ICML 2021, names it so.
    https://arxiv.org/abs/2007.14321
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation


def gap_scores(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 where the predicted class is the true one, else 0.

    Args:
        predicted: Classes that the target model answers, shape (n,).
        labels: True classes, shape (n,).

    Returns:
        Scores 0 or 1, shape (n,); higher = more likely a member.

    Raises:
        InputError: If the shapes differ.
    """
    if predicted.shape != labels.shape:
        raise InputError(
            "predicted classes",
            predicted.shape,
            f"must have the shape of the labels, {labels.shape}",
            "Give one predicted class a record.",
        )
    scores: NDArray[np.float64] = (predicted == labels).astype(np.float64)
    return scores


def _run(given: AttackInput) -> MembershipScores:
    lab = require_lab(given)
    records = lab.candidates
    parts = [lab.classes(np.asarray(records.inputs[rows])) for rows in records.blocks()]
    return MembershipScores(gap_scores(np.concatenate(parts), records.labels))


ATTACK = AttackSpec(
    name="gap",
    kind="membership",
    requires=Observation.LABELS_ONLY,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://arxiv.org/abs/1709.01604",
    summary="Records that the final model classifies rightly are called members",
)

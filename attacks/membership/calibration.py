"""Difficulty calibration: how much lower is the target's loss than that of models without it?

References:
    Watson, Guo, Cormode, Sablayrolles, "On the Importance of Difficulty Calibration in Membership
    Inference Attacks", ICLR 2022. https://arxiv.org/abs/2111.08440
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.membership.quantiles import SignalName, task_signal
from attacks.membership.shadow_settings import ShadowSettings, check_shadows, fewest
from attacks.membership.signals import Signal, check_logits, true_log_probability
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.threat_model import Knowledge, Observation


class Settings(ShadowSettings):
    """What a scenario may set: `{name = "calibration", mode = "offline", signal = "logit"}`."""

    signal: SignalName = Field(
        default="loss",
        description="loss, logit, confidence, entropy, modified_entropy or module:function",
    )


def calibration_scores(
    target_logits: NDArray[np.float64],
    shadow_logits: NDArray[np.float64],
    in_shadow: NDArray[np.bool_],
    labels: NDArray[np.int64],
    *,
    signal: Signal = true_log_probability,
) -> NDArray[np.float64]:
    """The target's signal minus the mean signal of the models that have not seen the record.

    Args:
        target_logits: Of the target model, shape (n, c).
        shadow_logits: Of k models whose training records are known, shape (k, n, c).
        in_shadow: True where a model was trained on a record, shape (k, n); those are not used.
        labels: True classes, shape (n,).
        signal: Of (logits, labels); higher = more likely a member.

    Returns:
        Scores in units of the signal (nats for the loss), shape (n,); higher = more likely a
        member.

    Raises:
        InputError: If logits are not finite, a label is no class, or a record has no model without
            it.
    """
    for logits in (target_logits, shadow_logits):
        check_logits(logits, labels)
    check_shadows(shadow_logits, in_shadow, len(labels))
    fewest(~in_shadow, "out", least=1)
    usual = np.where(in_shadow, 0, signal(shadow_logits, labels)).sum(axis=0)
    scores: NDArray[np.float64] = signal(target_logits, labels) - usual / (~in_shadow).sum(axis=0)
    return scores


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    signal = task_signal(settings.signal, lab.task)
    shadows = lab.shadows(
        settings.mode,
        settings.num_shadow_models,
        least=2 if settings.mode == "online" else 1,
        instead="population",
    )
    scores = calibration_scores(
        lab.logits(), shadows.logits(), shadows.in_shadow, lab.candidates.labels, signal=signal
    )
    return MembershipScores(scores, notes=(f"{len(shadows)} shadow models.",))


ATTACK = AttackSpec(
    name="calibration",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2111.08440",
    summary="The target's loss minus that of models trained without the record",
    settings=Settings,
)

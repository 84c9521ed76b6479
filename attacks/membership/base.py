"""BASE: the target's log-confidence against the log-mean-exp of shadow models' confidences.

References:
    Lassila, Östman, Ngo, Graell i Amat, "Practical Bayes-Optimal Membership Inference Attacks",
    2025. https://arxiv.org/abs/2505.24089
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import logsumexp

from attacks.membership.shadow_settings import ShadowSettings, check_shadows, fewest
from attacks.membership.signals import check_logits, true_log_probability
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.threat_model import Knowledge, Observation


class Settings(ShadowSettings):
    """What a scenario may set: `{name = "base", temperature = 1.0}`."""

    temperature: float = Field(default=2.0, gt=0)
    offline_scale: float = Field(default=0.33, ge=0, description="Weight of the out-models")


def base_scores(
    target_logits: NDArray[np.float64],
    shadow_logits: NDArray[np.float64],
    in_shadow: NDArray[np.bool_],
    labels: NDArray[np.int64],
    *,
    mode: Literal["online", "offline"] = "online",
    temperature: float = 2.0,
    offline_scale: float = 0.33,
) -> NDArray[np.float64]:
    """log p_target - log mean p over shadow models (online), or - scale * that over out-models.

    Args:
        target_logits: Of the target model, shape (n, c).
        shadow_logits: Of k shadow models, shape (k, n, c).
        in_shadow: True where a model was trained on a record, shape (k, n).
        labels: True classes, shape (n,).

    Returns:
        Scores in nats, shape (n,); higher = more likely a member.

    Raises:
        InputError: If logits are not finite, a label is no class, or offline a record has no model
            without it.
    """
    for logits in (target_logits, shadow_logits):
        check_logits(logits, labels)
    check_shadows(shadow_logits, in_shadow, len(labels))
    target = true_log_probability(target_logits, labels, temperature=temperature)
    shadow = true_log_probability(shadow_logits, labels, temperature=temperature)
    if mode == "online":
        scores: NDArray[np.float64] = target - (logsumexp(shadow, axis=0) - np.log(len(shadow)))
        return scores
    fewest(~in_shadow, "out", least=1)
    out = np.where(in_shadow, -np.inf, shadow)
    mean = logsumexp(out, axis=0) - np.log((~in_shadow).sum(axis=0))
    offline: NDArray[np.float64] = target - offline_scale * mean
    return offline


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    shadows = lab.shadows(settings.mode, settings.num_shadow_models, instead="population")
    scores = base_scores(
        lab.logits(),
        shadows.logits(),
        shadows.in_shadow,
        lab.candidates.labels,
        mode=settings.mode,
        temperature=settings.temperature,
        offline_scale=settings.offline_scale,
    )
    return MembershipScores(scores, notes=(f"{len(shadows)} shadow models.",))


ATTACK = AttackSpec(
    name="base",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2505.24089",
    summary="The target's confidence against the mean confidence of shadow models",
    settings=Settings,
)

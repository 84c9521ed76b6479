"""Reference attack (R-attack): is the target's signal unusual for models without the record?

References:
    Ye et al., "Enhanced Membership Inference Attacks against Machine Learning Models", CCS 2022,
    attack R. https://arxiv.org/abs/2111.09679
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from attacks.membership.quantiles import (
    LogOdds,
    SignalName,
    gaussian_log_odds,
    linear_log_odds,
    task_signal,
)
from attacks.membership.shadow_settings import ShadowSettings, check_shadows, fewest
from attacks.membership.signals import Signal, check_logits, logit_confidence, true_log_probability
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation

Threshold = Literal["linear", "logit", "gaussian", "minimum"]
_LEAST = {"linear": 1, "logit": 2, "gaussian": 2, "minimum": 2}  # out-models of each record
_LINEAR, _LOGIT = (linear_log_odds, None), (gaussian_log_odds, logit_confidence)
_ESTIMATES: dict[Threshold, list[tuple[LogOdds, Signal | None]]] = {  # None: the signal asked about
    "linear": [_LINEAR],
    "logit": [_LOGIT],
    "gaussian": [(gaussian_log_odds, None)],
    "minimum": [_LINEAR, _LOGIT],
}


class Settings(ShadowSettings):
    """What a scenario may set: `{name = "reference", mode = "offline", threshold = "minimum"}`."""

    signal: SignalName = Field(
        default="loss",
        description="loss, logit, confidence, entropy, modified_entropy or module:function",
    )
    threshold: Threshold = Field(
        default="linear",
        description="How the out-models' quantiles are estimated: interpolated (linear), by a "
        "Gaussian fit of the signal (gaussian) or of the true class's log-odds (logit); minimum: "
        "a record is called a member only where linear and logit both call it one",
    )

    @field_validator("threshold")
    @classmethod
    def _fits_signal(cls, value: Threshold, info: ValidationInfo) -> Threshold:
        if value in ("logit", "minimum") and info.data.get("signal") not in (None, "loss", "logit"):
            raise ValueError(
                f"{value!r} rescales the true class's probability: signal must be 'loss' or 'logit'"
            )
        return value


def reference_scores(
    target_logits: NDArray[np.float64],
    shadow_logits: NDArray[np.float64],
    in_shadow: NDArray[np.bool_],
    labels: NDArray[np.int64],
    *,
    threshold: Threshold = "linear",
    signal: Signal = true_log_probability,
) -> NDArray[np.float64]:
    """Log-odds of P(signal of a model without the record < the target's signal).

    A score above log((1 - alpha) / alpha) is the claim "member" at the false-positive rate alpha:
    the target's signal lies above the 1 - alpha quantile of that record's out-models. Log-odds,
    because P itself rounds to 1 where members are; see `linear_log_odds`, `gaussian_log_odds`.

    Args:
        target_logits: Of the target model, shape (n, c).
        shadow_logits: Of k models whose training records are known, shape (k, n, c).
        in_shadow: True where a model was trained on a record, shape (k, n); those are not used.
        labels: True classes, shape (n,).
        threshold: "linear", interpolated quantiles of the signal; "gaussian", a Gaussian fit of the
            signal; "logit", one of log p - log(1 - p) of the true class; "minimum", the smaller of
            linear and logit. All but the first need two out-models a record.
        signal: Of (logits, labels); higher = more likely a member.

    Returns:
        Scores in nats, shape (n,); higher = more likely a member.

    Raises:
        InputError: If logits are not finite, a label is no class, or a record has too few models.
    """
    for logits in (target_logits, shadow_logits):
        check_logits(logits, labels)
    check_shadows(shadow_logits, in_shadow, len(labels))
    if threshold not in _LEAST:
        known = ", ".join(map(repr, _LEAST))
        raise InputError("threshold", threshold, "unknown", f"Use one of {known}.")
    out = ~in_shadow
    fewest(out, "out", least=_LEAST[threshold])
    found = []
    for log_odds, statistic in _ESTIMATES[threshold]:
        ask = signal if statistic is None else statistic
        found.append(log_odds(ask(target_logits, labels), ask(shadow_logits, labels), out))
    scores: NDArray[np.float64] = np.min(found, axis=0)
    return scores


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    signal = task_signal(settings.signal, lab.task)
    least = _LEAST[settings.threshold] * (2 if settings.mode == "online" else 1)
    shadows = lab.shadows(
        settings.mode, settings.num_shadow_models, least=least, instead="population"
    )
    scores = reference_scores(
        lab.logits(),
        shadows.logits(),
        shadows.in_shadow,
        lab.candidates.labels,
        threshold=settings.threshold,
        signal=signal,
    )
    return MembershipScores(scores, notes=(f"{len(shadows)} shadow models.",))


ATTACK = AttackSpec(
    name="reference",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2111.09679",
    summary="Where the target's loss falls among those of models trained without the record",
    settings=Settings,
)

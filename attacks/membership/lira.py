"""LiRA: how likely is the target's confidence if the record was trained on, and if it was not?

References:
    Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022,
    Algorithm 1 (online) and section VI (offline). https://arxiv.org/abs/2112.03570
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import log_ndtr

from attacks.membership.augmentations import query_transforms
from attacks.membership.quantiles import SignalName, task_signal
from attacks.membership.shadow_settings import ShadowSettings, check_shadows, fewest
from attacks.membership.signals import Signal, check_logits, logit_confidence
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation

Variance = Literal["carlini", "fixed", "pooled"]
_ENOUGH = 64  # shadow models from which "carlini" fits a deviation to each record
_TINY = 1e-30  # keeps a deviation above zero
_LOG_FLOOR = 1e-45  # keeps a density above zero before the logarithm
_POOLED_FLOOR = 1e-6  # nats


class Settings(ShadowSettings):
    """What a scenario may set: `{name = "lira", mode = "offline", variance = "pooled"}`."""

    variance: Variance = "pooled"
    signal: SignalName = Field(
        default="logit",
        description='A signal near normal over models, or "module:function"',
    )
    num_augmentations: int = Field(
        default=1, ge=1, le=18, description="Queries a record: itself, mirrored, shifted (images)"
    )


def lira_scores(
    target_logits: NDArray[np.float64],
    shadow_logits: NDArray[np.float64],
    in_shadow: NDArray[np.bool_],
    labels: NDArray[np.int64],
    *,
    mode: Literal["online", "offline"] = "online",
    variance: Variance = "carlini",
    signal: Signal = logit_confidence,
) -> NDArray[np.float64]:
    """Log-likelihood ratio (online) or one-sided log-probability (offline) of each record.

    The statistic phi is log p - log(1 - p) of the true class, or another signal. Online, the score
    is log N(phi; in) - log N(phi; out); offline, log P(Z <= phi) for Z ~ N(out): how unusually
    confident the target is for a model that has not seen the record.

    Args:
        target_logits: Of the target model, shape (n, c).
        shadow_logits: Of k models whose training records are known, shape (k, n, c).
        in_shadow: True where a model was trained on a record, shape (k, n).
        labels: True classes, shape (n,).
        variance: The standard deviations: "carlini", one for each side, about zero instead of the
            mean, below 64 models, and one a record from 64; "fixed", one a record; "pooled", one
            for each side, of the deviations from each record's own mean. The first two have no
            floor but 1e-30, and agree with other tools; the last is ours, and best with few models.
        signal: Of (logits, labels); higher = more likely a member, near normal over models.

    Returns:
        Scores in nats, shape (n,); higher = more likely a member.

    Raises:
        InputError: If logits are not finite, a label is no class, or a record has too few models.
    """
    for logits in (target_logits, shadow_logits):
        check_logits(logits, labels)
    check_shadows(shadow_logits, in_shadow, len(labels))
    if variance not in ("carlini", "fixed", "pooled"):
        raise InputError("variance", variance, "unknown", "Use 'carlini', 'fixed' or 'pooled'.")
    return likelihood_ratio(
        signal(target_logits, labels),
        signal(shadow_logits, labels),
        in_shadow,
        mode=mode,
        variance=variance,
    )


def likelihood_ratio(
    statistic: NDArray[np.float64],
    shadow: NDArray[np.float64],
    in_shadow: NDArray[np.bool_],
    *,
    mode: Literal["online", "offline"],
    variance: Variance,
) -> NDArray[np.float64]:
    """LiRA's score of any near-normal statistic: target (n,), shadow models (k, n)."""
    if mode == "offline":
        fewest(~in_shadow, "out", least=1)
        mean, deviation = _fit(shadow, ~in_shadow, variance)
        z = (statistic - mean) / (deviation + _TINY)
        if variance == "pooled":
            tail: NDArray[np.float64] = log_ndtr(z)
            return tail
        floored: NDArray[np.float64] = np.log(np.exp(log_ndtr(z)) + _LOG_FLOOR)
        return floored
    least = 1 if variance != "fixed" else 2
    fewest(in_shadow, "in", least=least)
    fewest(~in_shadow, "out", least=least)
    log_in = _log_density(statistic, *_fit(shadow, in_shadow, variance), variance)
    log_out = _log_density(statistic, *_fit(shadow, ~in_shadow, variance), variance)
    return log_in - log_out


def _fit(
    shadow: NDArray[np.float64], chosen: NDArray[np.bool_], variance: Variance
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (n,) and standard deviation (n,) of the chosen entries of each column."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, shadow, 0).sum(axis=0) / count
    deviations = np.where(chosen, shadow - mean, 0)
    squares = (deviations**2).sum(axis=0)
    if variance == "fixed" or (variance == "carlini" and len(shadow) >= _ENOUGH):
        return mean, np.sqrt(squares / count)
    if variance == "carlini":
        return mean, np.full_like(mean, shadow[chosen].std())
    freedom = max(1, int(count.sum()) - len(mean))  # each record's mean was estimated, too
    if squares.sum() == 0:  # one model a record: its spread over records is all there is
        return mean, np.full_like(mean, max(_POOLED_FLOOR, float(mean.std())))
    return mean, np.full_like(mean, max(_POOLED_FLOOR, float(np.sqrt(squares.sum() / freedom))))


def _log_density(
    values: NDArray[np.float64],
    mean: NDArray[np.float64],
    deviation: NDArray[np.float64],
    variance: Variance,
) -> NDArray[np.float64]:
    deviation = deviation + _TINY
    log_density = -0.5 * ((values - mean) / deviation) ** 2 - np.log(deviation * np.sqrt(2 * np.pi))
    if variance == "pooled":
        found: NDArray[np.float64] = log_density
        return found
    floored: NDArray[np.float64] = np.log(np.exp(log_density) + _LOG_FLOOR)
    return floored


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    signal = task_signal(settings.signal, lab.task)
    shadows = lab.shadows(
        settings.mode,
        settings.num_shadow_models,
        least=2 if settings.mode == "online" else 1,
        instead="rmia with mode = 'offline'",
    )
    labels = lab.candidates.labels
    scores = [
        lira_scores(
            lab.logits(transform=transform, key=key),
            shadows.logits(transform=transform, key=key),
            shadows.in_shadow,
            labels,
            mode=settings.mode,
            variance=settings.variance,
            signal=signal,
        )
        for key, transform in query_transforms(
            lab.candidates.input_shape, settings.num_augmentations
        )
    ]
    return MembershipScores(np.mean(scores, axis=0), notes=(f"{len(shadows)} shadow models.",))


ATTACK = AttackSpec(
    name="lira",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2112.03570",
    summary="Likelihood ratio of the target's confidence, from shadow models with and without",
    settings=Settings,
)

"""Multi-signal LiRA: the likelihood ratio of several signals of a record together.

References:
    Johansson et al., "Privacy Risks in Time Series Forecasting: User- and Record-Level Membership
    Inference", 2025. https://arxiv.org/abs/2509.04169
    Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022, for one
    signal. https://arxiv.org/abs/2112.03570
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy.linalg import solve_triangular
from scipy.special import log_ndtr

from attacks.membership.shadow_settings import ShadowSettings, fewest
from attacks.membership.signals import check_logits, load_signal
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation

_FLOOR = 1e-6  # of a deviation, in units of its signal


class Settings(ShadowSettings):
    """What a scenario may set: `{name = "multi_signal_lira", signals = ["logit", "entropy"]}`."""

    signals: tuple[str, ...] = Field(
        default=("logit", "modified_entropy"),
        min_length=1,
        description='Different ones, by name, or "module:function"',
    )
    shrinkage: float = Field(
        default=0.1, gt=0, le=1, description="Share by which correlations are drawn towards 0"
    )

    @field_validator("signals")
    @classmethod
    def _differ(cls, signals: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(signals)) < len(signals):
            raise ValueError("names a signal twice, which would count it twice")
        return signals


def multi_signal_lira_scores(
    target: NDArray[np.float64],
    shadow: NDArray[np.float64],
    in_shadow: NDArray[np.bool_],
    *,
    mode: Literal["online", "offline"] = "online",
    shrinkage: float = 0.1,
) -> NDArray[np.float64]:
    """Log-likelihood ratio of s signals of each record, or the sum of their one-sided tails.

    Online, the signals of a record are normal with means of its own, and a covariance for each
    side that all records share: that of the deviations from each record's own mean, correlations
    drawn towards 0. Offline, the score is the sum over signals of log P(Z <= signal) for
    Z ~ N(out), as if they were independent: a one-sided tail of several has no usual form, and a
    two-sided density would take unusually unsure answers for members. With one signal both are
    LiRA with variance = "pooled".

    Args:
        target: Signals of the target, shape (s, n); higher = more like a member.
        shadow: Of k shadow models, shape (s, k, n).
        in_shadow: True where a model was trained on a record, shape (k, n).
        shrinkage: Share of each correlation that is taken away; above 0, so that signals which say
            the same can be told apart from noise.

    Returns:
        Scores in nats, shape (n,); higher = more likely a member.

    Raises:
        InputError: If shapes do not fit, a signal is not finite, or a record has too few models.

    References:
        Johansson et al., 2025. https://arxiv.org/abs/2509.04169
    """
    _check(target, shadow, in_shadow)
    fewest(~in_shadow, "out", least=1)
    if mode == "offline":
        mean, deviation, _ = _fit(shadow, ~in_shadow, shrinkage)
        tails: NDArray[np.float64] = log_ndtr((target - mean) / deviation[:, None]).sum(axis=0)
        return tails
    fewest(in_shadow, "in", least=1)
    log_in = _log_density(target, *_fit(shadow, in_shadow, shrinkage))
    return log_in - _log_density(target, *_fit(shadow, ~in_shadow, shrinkage))


def _check(
    target: NDArray[np.float64], shadow: NDArray[np.float64], in_shadow: NDArray[np.bool_]
) -> None:
    expected = (len(target), *in_shadow.shape)
    if target.ndim != 2 or shadow.shape != expected or in_shadow.shape[1:] != target.shape[1:]:
        raise InputError(
            "shadow",
            shadow.shape,
            f"must have shape (s, k, n) beside signals {target.shape} and members "
            f"{in_shadow.shape}",
            "Give each signal of each shadow model on each record.",
        )
    for values in (target, shadow):
        if not np.isfinite(values).all():
            bad = np.argwhere(~np.isfinite(values))[0]
            raise InputError(
                f"signal {bad[0]} of record {bad[-1]}",
                float(values[tuple(bad)]),
                "must be finite",
                "Leave the signal out, or check the model's answers.",
            )


def _fit(
    shadow: NDArray[np.float64], chosen: NDArray[np.bool_], shrinkage: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Means (s, n), deviations (s,) and correlations (s, s) of the chosen models' signals."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, shadow, 0).sum(axis=1) / count
    flat = np.where(chosen, shadow - mean[:, None], 0).reshape(len(shadow), -1)
    freedom = max(1, int(count.sum()) - len(count))  # each record's mean was estimated, too
    covariance = flat @ flat.T / freedom
    own = np.sqrt(np.diag(covariance))
    # one model a record: a signal's spread over records is all there is
    deviation = np.maximum(_FLOOR, np.where(own > 0, own, mean.std(axis=1)))
    unit = np.where(own > 0, own, 1)
    correlation = (1 - shrinkage) * covariance / np.outer(unit, unit)
    np.fill_diagonal(correlation, 1)
    return mean, deviation, correlation


def _log_density(
    values: NDArray[np.float64],
    mean: NDArray[np.float64],
    deviation: NDArray[np.float64],
    correlation: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Without the constant, which the ratio does not need: shape (n,)."""
    root = np.linalg.cholesky(correlation)
    z = solve_triangular(root, (values - mean) / deviation[:, None], lower=True)
    found: NDArray[np.float64] = (
        -0.5 * (z**2).sum(axis=0) - np.log(np.diag(root)).sum() - np.log(deviation).sum()
    )
    return found


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    shadows = lab.shadows(
        settings.mode,
        settings.num_shadow_models,
        least=2 if settings.mode == "online" else 1,
        instead="rmia with mode = 'offline'",
    )
    labels = lab.candidates.labels
    answers, others = lab.logits(), shadows.logits()
    for logits in (answers, others):
        check_logits(logits, labels)
    signals = [load_signal(name) for name in settings.signals]
    scores = multi_signal_lira_scores(
        np.stack([signal(answers, labels) for signal in signals]),
        np.stack([signal(others, labels) for signal in signals]),
        shadows.in_shadow,
        mode=settings.mode,
        shrinkage=settings.shrinkage,
    )
    return MembershipScores(scores, notes=(f"{len(shadows)} shadow models.",))


ATTACK = AttackSpec(
    name="multi_signal_lira",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2509.04169",
    summary="Likelihood ratio of several signals together, from shadow models with and without",
    settings=Settings,
)

"""RMIA: by how many records of the population is the record's likelihood ratio beaten?

References:
    Zarifzadeh, Liu, Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024,
    equations 2-4 and section 3. https://arxiv.org/abs/2312.03262
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.membership.shadow_settings import ShadowSettings, check_shadows, fewest
from attacks.membership.signals import check_logits, true_log_probability
from attacks.shadows.lab import Lab, ShadowSignals, require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.stats import auc
from fl_audit.threat_model import Knowledge, Observation

Mode = Literal["online", "offline"]
_GRID = tuple(round(0.1 * step, 1) for step in range(11))
_DEFAULT_A = 0.33


class Settings(ShadowSettings):
    """What a scenario may set: `{name = "rmia", gamma = 1.0, offline_a = 0.3}`."""

    gamma: float = Field(default=2.0, gt=0)
    temperature: float = Field(default=2.0, gt=0)
    offline_a: float | None = Field(
        default=None, ge=0, le=1, description="null: tuned on a shadow model in the target's place"
    )


def rmia_scores(
    target_logits: NDArray[np.float64],
    shadow_logits: NDArray[np.float64],
    in_shadow: NDArray[np.bool_],
    labels: NDArray[np.int64],
    *,
    mode: Mode = "online",
    gamma: float = 2.0,
    temperature: float = 2.0,
    offline_a: float = _DEFAULT_A,
    population_ratios: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Share of the population z for which ratio(x) / ratio(z) > gamma.

    ratio(x) = p_target(x) / p(x), with p the probability of the true class. Online, p(x) is the
    mean over all reference models; offline, ((1 + a) * mean over those without x + (1 - a)) / 2.
    A sorted search finds the share exactly, in O((n + m) log m).

    Args:
        target_logits: Of the target model, shape (n, c).
        shadow_logits: Of k reference models, shape (k, n, c).
        in_shadow: True where a model was trained on a record, shape (k, n).
        labels: True classes, shape (n,).
        gamma: Threshold on the pairwise likelihood ratio.
        temperature: Of the softmax.
        offline_a: The paper's a, offline only.
        population_ratios: ratio(z) of m other records (see `rmia_ratios`), shape (m,); by default
            the n records are their own population.

    Returns:
        Scores in [0, 1], shape (n,); higher = more likely a member.

    Raises:
        InputError: If logits are not finite, a label is no class, or offline a record has no model
            without it.
    """
    check_logits(shadow_logits, labels)
    check_shadows(shadow_logits, in_shadow, len(labels))
    target = log_probability(target_logits, labels, temperature=temperature)
    shadow = np.exp(true_log_probability(shadow_logits, labels, temperature=temperature))
    reference = reference_probability(shadow, in_shadow, mode=mode, offline_a=offline_a)
    ratios = np.exp(target) / reference
    if population_ratios is None:
        # p(z) over all models, in both modes: whether z was trained on is not asked
        everywhere = np.zeros_like(in_shadow)
        over_all = reference_probability(shadow, everywhere, mode=mode, offline_a=offline_a)
        population_ratios = np.exp(target) / over_all
    return pairwise_share(ratios, population_ratios, gamma=gamma)


def rmia_ratios(
    target_logits: NDArray[np.float64],
    shadow_logits: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    mode: Mode = "online",
    temperature: float = 2.0,
    offline_a: float = _DEFAULT_A,
) -> NDArray[np.float64]:
    """ratio(z) of population records, over all reference models: shape (m,)."""
    check_logits(shadow_logits, labels)
    target = np.exp(log_probability(target_logits, labels, temperature=temperature))
    shadow = np.exp(true_log_probability(shadow_logits, labels, temperature=temperature))
    nowhere = np.zeros(shadow.shape, dtype=np.bool_)
    return target / reference_probability(shadow, nowhere, mode=mode, offline_a=offline_a)


def pairwise_share(
    ratios: NDArray[np.float64], population: NDArray[np.float64], *, gamma: float
) -> NDArray[np.float64]:
    """Share of the population with ratio / population > gamma, strictly; shape (n,)."""
    if population.size == 0:
        raise InputError(
            "population", 0, "needs at least one record", "Give auxiliary records to compare with."
        )
    ordered = np.sort(population)
    # dividing as the definition does: ratio / z > gamma is not always z < ratio / gamma in floats
    places = np.searchsorted(ordered, ratios / gamma, side="left")
    places = _settle(places, ratios, ordered, gamma)
    share: NDArray[np.float64] = places / population.size
    return share


def reference_probability(
    shadow: NDArray[np.float64], in_shadow: NDArray[np.bool_], *, mode: Mode, offline_a: float
) -> NDArray[np.float64]:
    """p(x) from reference models' probabilities (k, n): shape (n,)."""
    if mode == "online":
        mean: NDArray[np.float64] = shadow.mean(axis=0)
        return mean
    fewest(~in_shadow, "out", least=1)
    out = np.where(in_shadow, 0, shadow).sum(axis=0) / (~in_shadow).sum(axis=0)
    corrected: NDArray[np.float64] = 0.5 * ((1 + offline_a) * out + (1 - offline_a))
    return corrected


def log_probability(
    logits: NDArray[np.float64], labels: NDArray[np.int64], *, temperature: float
) -> NDArray[np.float64]:
    """log p of the true class at a temperature, after the checks."""
    check_logits(logits, labels)
    return true_log_probability(logits, labels, temperature=temperature)


def _settle(
    places: NDArray[np.int64],
    ratios: NDArray[np.float64],
    ordered: NDArray[np.float64],
    gamma: float,
) -> NDArray[np.int64]:
    """Move each place over neighbours that rounding put on the wrong side."""
    last = len(ordered) - 1
    while (up := (places <= last) & (ratios / ordered[np.minimum(places, last)] > gamma)).any():
        places = places + up
    while (down := (places > 0) & ~(ratios / ordered[np.maximum(places - 1, 0)] > gamma)).any():
        places = places - down
    return places


def _scores(lab: Lab, shadows: ShadowSignals, settings: Settings, a: float) -> NDArray[np.float64]:
    population = rmia_ratios(
        lab.population_logits(),
        shadows.population_logits(),
        lab.auxiliary.labels,
        mode=settings.mode,
        temperature=settings.temperature,
        offline_a=a,
    )
    return rmia_scores(
        lab.logits(),
        shadows.logits(),
        shadows.in_shadow,
        lab.candidates.labels,
        mode=settings.mode,
        gamma=settings.gamma,
        temperature=settings.temperature,
        offline_a=a,
        population_ratios=population,
    )


def _tuned_a(lab: Lab, settings: Settings) -> tuple[float, str]:
    """The a with the highest AUC where a shadow model plays the target; its answer is known."""
    played = lab.calibration(settings.mode, settings.num_shadow_models)
    left = settings.num_shadow_models - len(lab.left_out) - 2
    if played is None or left < 1:
        return _DEFAULT_A, "the default: too few models or records to tune it on"
    task, is_member = played
    shadows = task.shadows(settings.mode, settings.num_shadow_models)
    reached = [auc(is_member, _scores(task, shadows, settings, a)) for a in _GRID]
    return _GRID[int(np.argmax(reached))], "tuned on a shadow model in the target's place"


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    lab.require_population()
    shadows = lab.shadows(settings.mode, settings.num_shadow_models, instead="population")
    notes = [f"{len(shadows)} reference models."]
    a = settings.offline_a
    if settings.mode == "offline" and a is None:
        a, how = _tuned_a(lab, settings)
        notes.append(f"offline_a = {a:g}, {how}.")
    scores = _scores(lab, shadows, settings, _DEFAULT_A if a is None else a)
    return MembershipScores(scores, notes=tuple(notes))


ATTACK = AttackSpec(
    name="rmia",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2312.03262",
    summary="Likelihood ratio of a record against those of the population; strong with few models",
    settings=Settings,
)

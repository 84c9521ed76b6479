"""Range membership: was any record near this one trained on?

An adversary seldom holds the very record that was trained on. It asks about a range instead: all
images up to a shift and a rotation, all rows within a distance, all rows with some fields unknown.
The score is a trimmed mean of RMIA's over points drawn from the range; the lowest are dropped,
since most points of a range with a member in it are none.

References:
    Tao & Shokri, "Range Membership Inference Attacks", IEEE SaTML 2025.
    https://arxiv.org/abs/2408.05131
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from attacks.membership.augmentation_consistency import (
    feature_deviations,
    image_transform,
    require_images,
    shifted,
)
from attacks.membership.rmia import rmia_ratios, rmia_scores
from attacks.membership.shadow_settings import ShadowSettings
from attacks.shadows.lab import Lab, ShadowSignals, require_lab
from attacks.shadows.workshop import Transform
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.stats import auc
from fl_audit.threat_model import Knowledge, Observation

Sample = tuple[str, Transform | None]
_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)  # to drop, where that is tuned


class Settings(ShadowSettings):
    """What a scenario may set: `{name = "range_membership", range = "l2", radius = 2.0}`."""

    range: Literal["auto", "geometric", "l2", "missing"] = Field(
        default="auto", description="auto: geometric for inputs (channels, height, width), else l2"
    )
    num_samples: int = Field(default=10, ge=1, le=1000)
    mirror: bool = Field(default=True, description="geometric: left to right, by lot")
    shift: int = Field(default=2, ge=0, le=16, description="geometric: pixels down and across")
    angle: float = Field(default=5.0, ge=0, le=180, description="geometric: degrees either way")
    radius: float = Field(default=1.0, gt=0, description="l2: in deviations of the features")
    missing: float = Field(default=0.2, gt=0, lt=1, description="missing: share of the features")
    trim_low: float = Field(default=0.4, ge=0, lt=1, description="Share of lowest scores dropped")
    trim_high: float = Field(default=0.0, ge=0, lt=1, description="Share of highest ones dropped")
    tune: bool = Field(default=False, description="Choose both on a shadow model as the target")
    gamma: float = Field(default=2.0, gt=0)
    temperature: float = Field(default=2.0, gt=0)
    offline_a: float = Field(default=0.33, ge=0, le=1)

    @model_validator(mode="after")
    def _keeps_some(self) -> Settings:
        if self.trim_low + self.trim_high >= 1:
            raise ValueError("trim_low + trim_high must be below 1, so that some scores are left")
        return self


def range_membership_scores(
    sample_scores: NDArray[np.float64], *, trim_low: float = 0.4, trim_high: float = 0.0
) -> NDArray[np.float64]:
    """Mean of a record's scores without its lowest and highest ones.

    Args:
        sample_scores: Of k points of each record's range, by any attack, shape (k, n); higher =
            more likely a member.
        trim_low: Share of the k scores that is dropped from below; floor(trim_low * k) are.
        trim_high: The same from above.

    Returns:
        Scores in the units of the attack, shape (n,); higher = more likely a member in the range.

    Raises:
        InputError: If nothing is left, or a score is not finite.
    """
    num = len(sample_scores)
    low, high = (int(num * share + 1e-9) for share in (trim_low, trim_high))
    if sample_scores.ndim != 2 or min(low, high) < 0 or low + high >= num:
        raise InputError(
            "sample_scores",
            sample_scores.shape,
            f"must have shape (k, n), of which {low} and {high} of k are dropped",
            "Draw more samples, or lower trim_low and trim_high.",
        )
    if not np.isfinite(sample_scores).all():
        record = int(np.argwhere(~np.isfinite(sample_scores))[0, 1])
        raise InputError(
            f"sample scores of record {record}",
            sample_scores[:, record],
            "must be finite",
            "Check the attack that scored the samples.",
        )
    kept = np.sort(sample_scores, axis=0)[low : num - high]
    mean: NDArray[np.float64] = kept.mean(axis=0)
    return mean


def draw_samples(lab: Lab, settings: Settings, rng: np.random.Generator) -> list[Sample]:
    """(key, transform) of each point of the range; the same change for every record.

    The candidate is a point of its own range, and the first one, unless values are missing: then
    the adversary does not have it.

    Raises:
        InputError: If the range does not suit the inputs.
    """
    shape = lab.candidates.input_shape
    kind = settings.range
    if kind == "auto":
        kind = "geometric" if len(shape) == 3 else "l2"
    if kind == "missing":
        return _missing(lab, settings, rng)
    itself: list[Sample] = [("", None)]
    if kind == "geometric":
        require_images(shape, "range", kind, instead="l2")
        return itself + [_geometric(settings, rng) for _ in range(settings.num_samples - 1)]
    deviations = feature_deviations(lab.auxiliary)
    return itself + [_in_ball(settings, deviations, rng) for _ in range(settings.num_samples - 1)]


def _geometric(settings: Settings, rng: np.random.Generator) -> Sample:
    mirror = settings.mirror and bool(rng.integers(2))
    down, across = (int(n) for n in rng.integers(-settings.shift, settings.shift + 1, size=2))
    angle = float(rng.uniform(-settings.angle, settings.angle))
    key = f"mirror {mirror} down {down} across {across} then rotate {angle!r}"
    return key, image_transform(mirror=mirror, down=down, across=across, angle=angle)


def _in_ball(
    settings: Settings, deviations: NDArray[np.float64], rng: np.random.Generator
) -> Sample:
    """A point drawn evenly from the ball, in units of each feature's deviation."""
    varies = deviations > 0  # a feature that is the same in all records stays as it is
    if not varies.any():
        raise InputError(
            "auxiliary records",
            "all alike",
            "their deviations are the units of radius",
            "Give auxiliary records of the target's distribution.",
        )
    direction = np.where(varies, rng.standard_normal(deviations.shape), 0)
    length = settings.radius * rng.random() ** (1 / int(varies.sum()))
    offset = deviations * direction * (length / np.linalg.norm(direction))
    rounded = offset.astype(np.float32)
    return f"add {_digest(rounded)}", shifted(rounded)


def _missing(lab: Lab, settings: Settings, rng: np.random.Generator) -> list[Sample]:
    """The same features of every record, filled from one auxiliary record a sample."""
    size = int(np.prod(lab.candidates.input_shape))
    num = max(1, round(settings.missing * size))
    features = np.sort(rng.choice(size, num, replace=False))
    total = len(lab.population)
    donors = rng.choice(total, settings.num_samples, replace=total < settings.num_samples)
    values = np.asarray(lab.auxiliary.take(donors).inputs).reshape(len(donors), -1)[:, features]
    return [(f"set {_digest(features, row)}", _filled(features, row)) for row in values]


def _filled(features: NDArray[np.int64], values: NDArray[np.float32]) -> Transform:
    def apply(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        flat = inputs.reshape(len(inputs), -1).copy()
        flat[:, features] = values
        return flat.reshape(inputs.shape)

    return apply


def _digest(*arrays: NDArray[np.generic]) -> str:
    """What is kept of a model's answers is found again by this: it must tell samples apart."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _sample_scores(
    lab: Lab, shadows: ShadowSignals, settings: Settings, samples: list[Sample]
) -> NDArray[np.float64]:
    """RMIA's score of each sample of each record, (k, n)."""
    mode, temperature, a = settings.mode, settings.temperature, settings.offline_a
    population = rmia_ratios(
        lab.population_logits(),
        shadows.population_logits(),
        lab.auxiliary.labels,
        mode=mode,
        temperature=temperature,
        offline_a=a,
    )
    scores = [
        rmia_scores(
            lab.logits(transform=transform, key=key),
            shadows.logits(transform=transform, key=key),
            shadows.in_shadow,
            lab.candidates.labels,
            mode=mode,
            gamma=settings.gamma,
            temperature=temperature,
            offline_a=a,
            population_ratios=population,
        )
        for key, transform in samples
    ]
    return np.stack(scores)


def _tuned(lab: Lab, settings: Settings, samples: list[Sample]) -> tuple[float, float] | None:
    """The shares with the highest AUC where a shadow model plays the target."""
    played = lab.calibration(settings.mode, settings.num_shadow_models)
    if played is None:
        return None
    task, is_member = played
    shadows = task.shadows(settings.mode, settings.num_shadow_models, least=0)
    if len(shadows) == 0:
        return None
    scores = _sample_scores(task, shadows, settings, samples)
    grid = [(settings.trim_low, settings.trim_high)]  # first, so that it stays where all tie
    grid += [(low, high) for low in _SHARES for high in _SHARES if low + high < 1]
    reached = [
        auc(is_member, range_membership_scores(scores, trim_low=low, trim_high=high))
        for low, high in grid
    ]
    return grid[int(np.argmax(reached))]


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    lab.require_population()
    shadows = lab.shadows(settings.mode, settings.num_shadow_models, instead="population")
    samples = draw_samples(lab, settings, given.rng)
    low, high = settings.trim_low, settings.trim_high
    notes = [f"{len(samples)} samples a record, {len(shadows)} reference models."]
    if settings.tune:
        tuned = _tuned(lab, settings, samples)
        if tuned is None:
            notes.append("Nothing tuned: too few shadow models or records for it.")
        else:
            low, high = tuned
            notes.append(f"Tuned on a shadow model: trim_low = {low:g}, trim_high = {high:g}.")
    scores = _sample_scores(lab, shadows, settings, samples)
    trimmed = range_membership_scores(scores, trim_low=low, trim_high=high)
    return MembershipScores(trimmed, notes=tuple(notes))


ATTACK = AttackSpec(
    name="range_membership",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2408.05131",
    summary="Was a record near this one trained on? A trimmed mean of RMIA over its range",
    settings=Settings,
)

"""Attack-D: is the target surer of the record than models that only learned from its answers?

A model distilled from the target on other records has the target's ways without its memories: the
two differ most on what the target was trained on.

References:
    Ye et al., "Enhanced Membership Inference Attacks against Machine Learning Models", CCS 2022.
    https://arxiv.org/abs/2111.09679
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.membership.signals import check_logits, load_signal
from attacks.shadows.lab import require_lab
from fl_audit.attack_spec import AttackInput, AttackSettings, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation

_FLOOR = 1e-6  # of the deviation, in units of the signal: models that agree to the last bit


class Settings(AttackSettings):
    """What a scenario may set: `{name = "distillation", num_distilled_models = 4}`."""

    num_distilled_models: int = Field(
        default=8, ge=2, description="Models distilled from the target, each on half of a draw"
    )
    signal: Literal["logit", "loss"] = Field(
        default="logit", description="What is compared; logit is nearer to normal over models"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="The target's logits are divided by it, here and to distil"
    )


def distillation_scores(
    target: NDArray[np.float64], distilled: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How many standard deviations the target's signal lies above the distilled models'.

    The deviation is one for all records, of the distilled models from each record's own mean:
    a few models are too few to fit one to each.

    Args:
        target: Signal of the target, shape (n,); higher = more like a member.
        distilled: Of k models distilled from it on other records, k >= 2, shape (k, n).

    Returns:
        z-scores, shape (n,); higher = more likely a member.

    Raises:
        InputError: If shapes do not fit or there are fewer than two models.

    References:
        Ye et al., CCS 2022. https://arxiv.org/abs/2111.09679
    """
    if distilled.ndim != 2 or distilled.shape[1:] != target.shape:
        raise InputError(
            "distilled",
            distilled.shape,
            f"must have shape (k, {len(target)}): one row a model, one column a record",
            "Give every distilled model's signal on the same records as the target's.",
        )
    num = len(distilled)
    if num < 2:
        raise InputError(
            "num_distilled_models",
            num,
            "a deviation needs at least 2 models",
            "Distil more models from the target.",
        )
    mean = distilled.mean(axis=0)
    squares = float(((distilled - mean) ** 2).sum())
    freedom = (num - 1) * len(target)  # each record's mean was estimated, too
    found: NDArray[np.float64] = (target - mean) / max(_FLOOR, float(np.sqrt(squares / freedom)))
    return found


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    lab.require_population()
    models = lab.distilled(num=settings.num_distilled_models, temperature=settings.temperature)
    labels, signal = lab.candidates.labels, load_signal(settings.signal)
    # the distilled models' logits are those of the target at this temperature already
    target = lab.logits() / settings.temperature
    check_logits(target, labels)
    answers = np.stack([signal(lab.logits(last), labels) for *_, last in models])
    return MembershipScores(
        distillation_scores(signal(target, labels), answers),
        notes=(f"{len(models)} distilled models.",),
    )


ATTACK = AttackSpec(
    name="distillation",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2111.09679",
    summary="The target's confidence against models distilled from it on other records",
    settings=Settings,
)

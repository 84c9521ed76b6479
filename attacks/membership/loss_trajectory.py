"""Loss trajectory: how the loss of a record falls while a model is distilled from the target.

A record's loss under the target and under each epoch of a model that imitates it are features of a
small classifier, which learns from a shadow model, imitated in the same way, who is a member.

References:
    Liu et al., "Membership Inference Attacks by Exploiting Loss Trajectory", CCS 2022.
    https://arxiv.org/abs/2208.14933
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.membership.classifiers import fit_log_odds, known_task
from attacks.membership.shadow_settings import ShadowSettings
from attacks.membership.signals import check_logits, true_log_probability
from attacks.shadows.lab import Lab, require_lab
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.threat_model import Knowledge, Observation

_LEAST_LOSS = 1e-6  # nats: below it, losses are rounding, and their logarithm noise


class Settings(ShadowSettings):
    """What a scenario may set: `{name = "loss_trajectory", classifier = "mlp"}`."""

    num_shadow_models: int = Field(
        default=4,
        ge=1,
        description="One is imitated; two more are left out where the attack is calibrated",
    )
    num_epochs: int = Field(
        default=25, ge=1, description="Epochs looked at: evenly spaced, the last one always"
    )
    classifier: Literal["logistic", "mlp"] = "logistic"


def loss_trajectory_scores(
    target: NDArray[np.float64],
    shadow: NDArray[np.float64],
    is_member: NDArray[np.bool_],
    *,
    classifier: Literal["logistic", "mlp"] = "logistic",
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Log-odds of membership from trajectories, learned from those of a shadow model.

    Args:
        target: Losses in nats of n records: under the epochs of a model distilled from the target,
            then under the target itself, shape (n, epochs + 1).
        shadow: The same of m records for the shadow model, shape (m, epochs + 1).
        is_member: True where the shadow model was trained on a record, shape (m,).
        rng: Of the classifier.

    Returns:
        Scores in nats, shape (n,); higher = more likely a member.

    Raises:
        InputError: If shapes do not fit or all records of the shadow are of one kind.

    References:
        Liu et al., CCS 2022. https://arxiv.org/abs/2208.14933
    """
    # losses span decades, and differences between small ones count
    return fit_log_odds(classifier, _log(shadow), is_member, at=_log(target), rng=rng)


def _log(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.log(np.maximum(losses, _LEAST_LOSS))
    return found


def _trajectories(lab: Lab, num_epochs: int) -> NDArray[np.float64]:
    """Losses of the candidates under each epoch, then under the target, (n, epochs + 1)."""
    ((*epochs,),) = lab.distilled(num=1, snapshots=True)
    chosen = np.unique(np.linspace(len(epochs) - 1, 0, num_epochs).round().astype(int))
    labels = lab.candidates.labels
    losses = []
    for model in [*(epochs[number] for number in chosen), lab.target]:
        logits = lab.logits(model)
        check_logits(logits, labels)
        losses.append(-true_log_probability(logits, labels))
    return np.stack(losses, axis=1)


def _run(given: AttackInput) -> MembershipScores:
    lab, settings = require_lab(given), given.settings
    shadow, is_member = known_task(
        lab, settings.mode, settings.num_shadow_models, instead="distillation"
    )
    shadow.require_population()
    # the same records to distil both on: the shadow model was trained on some of the others
    target = replace(lab, population=shadow.population)
    scores = loss_trajectory_scores(
        _trajectories(target, settings.num_epochs),
        _trajectories(shadow, settings.num_epochs),
        is_member,
        classifier=settings.classifier,
        rng=given.rng,
    )
    return MembershipScores(
        scores,
        notes=(
            f"Learned from one shadow model and {len(is_member)} records; distilled on "
            f"{len(shadow.population)} auxiliary records.",
        ),
    )


ATTACK = AttackSpec(
    name="loss_trajectory",
    kind="membership",
    requires=Observation.LOGITS,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2208.14933",
    summary="Losses along the epochs of a model distilled from the target, read by a classifier",
    settings=Settings,
)

"""Loss trajectory: known trajectories, what is distilled on what, and on trained targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from attacks.membership.loss_trajectory import ATTACK, Settings, loss_trajectory_scores
from attacks.shadows.lab import Lab
from fl_audit.errors import InputError
from fl_audit.stats import auc, auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40


def trajectories(num: int = 300) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Losses of distilled epochs vary by record; under the model itself, members' are 5 % of it."""
    rng = np.random.default_rng(SEED)
    is_member = np.arange(num) % 2 == 0
    hardness = np.exp(rng.normal(0, 2, num))
    epochs = hardness[:, None] * np.array([3.0, 2.0, 1.0]) * np.exp(rng.normal(0, 0.1, (num, 3)))
    own = hardness * np.where(is_member, 0.05, 1.0) * np.exp(rng.normal(0, 0.1, num))
    return np.column_stack([epochs, own]), is_member


@pytest.mark.parametrize("classifier", ["logistic", "mlp"])
def test_the_trajectory_tells_what_the_loss_alone_does_not(
    classifier: Literal["logistic", "mlp"],
) -> None:
    losses, is_member = trajectories()
    scores = loss_trajectory_scores(
        losses[:150],
        losses[150:],
        is_member[150:],
        classifier=classifier,
        rng=np.random.default_rng(SEED),
    )
    # of the loss alone: P(N(0, 2 sqrt 2) < log 20) = 0.85
    assert auc(is_member[:150], -losses[:150, -1]) < 0.95 < 0.97 < auc(is_member[:150], scores)


def test_a_loss_of_zero_is_a_small_loss() -> None:
    losses, is_member = trajectories()
    target = np.array([[1.0, 0.5, 0.2, 0.0], [1.0, 0.5, 0.2, 0.2]])
    scores = loss_trajectory_scores(target, losses, is_member, rng=np.random.default_rng(SEED))
    assert np.isfinite(scores).all()
    assert scores[0] > 0 > scores[1]


@pytest.mark.parametrize("settings", [{}, {"mode": "offline", "classifier": "mlp"}], ids=str)
def test_null_candidates_look_alike(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, found = memorised.run(ATTACK, "null", **settings)
    estimate = auc_ci(is_member, found.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("settings", [{}, {"mode": "offline", "num_epochs": 5}], ids=str)
def test_memorised_members_stand_out(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, found = memorised.run(ATTACK, **settings)
    assert auc_ci(is_member, found.scores, confidence=CONFIDENCE).low > 0.5


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_both_models_are_distilled_on_the_same_records_that_neither_was_trained_on(
    overfitted: Any, monkeypatch: pytest.MonkeyPatch, mode: Literal["online", "offline"]
) -> None:
    seen: list[Lab] = []
    distil = Lab.distilled

    def spy(lab: Lab, **settings: Any) -> Any:
        seen.append(lab)
        return distil(lab, **settings)

    monkeypatch.setattr(Lab, "distilled", spy)
    overfitted.run(ATTACK, mode=mode)
    target, shadow = seen
    lab = overfitted.candidates
    assert target.target is lab.target
    played = lab.workshop.shadows(mode, 1)[0]
    assert shadow.target is played.target
    np.testing.assert_array_equal(target.population, shadow.population)
    assert np.isin(target.population, lab.population).all()
    assert not played.trained_on[shadow.population].any()
    assert not np.isin(shadow.rows, shadow.population).any()


def test_runs_again_on_a_task_that_a_shadow_model_plays(memorised: Any) -> None:
    """As calibration does: another shadow model is learned from, and its result is as good."""
    task, is_member = memorised.candidates.calibration("online", 4)
    played = replace(memorised, candidates=task, is_member=is_member)
    known, found = played.run(ATTACK)
    assert auc_ci(known, found.scores, confidence=CONFIDENCE).low > 0.5


def test_says_what_it_lacks(overfitted: Any) -> None:
    task, _ = overfitted.candidates.calibration("online", 2)
    with pytest.raises(InputError, match=r"num_shadow_models to 3 or more, or use distillation"):
        replace(overfitted, candidates=task).run(ATTACK, num_shadow_models=2)
    with pytest.raises(InputError, match="20 of each are needed"):  # one half, all of it members
        overfitted.run(ATTACK, mode="offline", num_shadow_models=1)


def test_same_seed_same_bytes(overfitted: Any) -> None:
    first, again = (overfitted.run(ATTACK, classifier="mlp")[1].scores for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_bad_input_is_refused() -> None:
    losses, is_member = trajectories()
    with pytest.raises(InputError, match="same features"):
        loss_trajectory_scores(losses[:, :2], losses, is_member, rng=np.random.default_rng(SEED))
    with pytest.raises(ValidationError):
        Settings(num_epochs=0)

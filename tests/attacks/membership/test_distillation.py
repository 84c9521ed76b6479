"""Attack-D: z-scores by hand, what distilled models learn from, and on trained targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from torch import nn

from attacks.membership.distillation import ATTACK, Settings, distillation_scores
from attacks.membership.signals import logit_confidence
from attacks.shadows.lab import Lab
from attacks.shadows.target import Task, module_target
from attacks.shadows.trainers import DefaultTrainer
from attacks.shadows.training import Job, TrainingConfig, fresh_builder, train_one
from attacks.shadows.workshop import Workshop
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.stats import auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40


def test_scores_are_z_scores_with_a_deviation_of_all_records() -> None:
    distilled = np.array([[0.0, 4.0, 1.0], [2.0, 6.0, 1.0]])  # deviations 1, 1; 1, 1; 0, 0
    deviation = np.sqrt(4 / 3)  # of six deviations, three of them free
    found = distillation_scores(np.array([3.0, 5.0, 0.0]), distilled)
    np.testing.assert_allclose(found, [2 / deviation, 0, -1 / deviation])


def test_distilled_models_that_agree_to_the_last_bit_give_finite_scores() -> None:
    found = distillation_scores(np.array([1.0, 0.0]), np.zeros((2, 2)))
    np.testing.assert_allclose(found, [1e6, 0])


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 3), "at least 2 models"), ((2, 4), "must have shape")]
)
def test_too_few_models_and_wrong_shapes_are_refused(shape: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        distillation_scores(np.zeros(3), np.zeros(shape))


def test_null_candidates_look_alike(memorised: Any) -> None:
    is_member, found = memorised.run(ATTACK, "null")
    estimate = auc_ci(is_member, found.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize(
    "settings", [{}, {"signal": "loss", "num_distilled_models": 2, "temperature": 2.0}], ids=str
)
def test_memorised_members_stand_out(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, found = memorised.run(ATTACK, **settings)
    assert auc_ci(is_member, found.scores, confidence=CONFIDENCE).low > 0.5


def test_the_target_is_compared_at_the_temperature_of_its_imitations(overfitted: Any) -> None:
    """Or all records would look like members: softer imitations are less sure of everything."""
    _, found = overfitted.run(ATTACK, "null", temperature=5.0, num_distilled_models=2)
    # Non-members' z-scores are about 0 on average. At the wrong temperature the target's logits
    # are 5 times those that were imitated.
    lab = overfitted.null
    wrong = logit_confidence(lab.logits(), lab.candidates.labels)
    models = lab.distilled(num=2, temperature=5.0)
    answers = [logit_confidence(lab.logits(m[-1]), lab.candidates.labels) for m in models]
    assert distillation_scores(wrong, np.stack(answers)).mean() > 4 * abs(found.scores.mean())


def small_lab(*, poisoned: bool = False, epochs: int = 3, has_factory: bool = True) -> Lab:
    """40 audited records, 120 auxiliary ones, of which only the last 80 may be learned from."""
    rng = np.random.default_rng(SEED)
    inputs = rng.normal(size=(160, 4)).astype(np.float32)
    labels = (inputs[:, 0] > 0).astype(np.int64)
    build = fresh_builder(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    config = TrainingConfig(epochs=epochs, learning_rate=1e-2)
    clean = Records(np.arange(160), inputs.copy(), labels)
    target = module_target(train_one(build, Job(clean.take(np.arange(20)), 1), config))
    if poisoned:
        inputs[:80] = np.nan
    workshop = Workshop(
        Records(np.arange(160), inputs, labels),
        40,
        Task("classification", 2),
        trainer=DefaultTrainer(build, config),
        build=build if has_factory else None,
        train_size=40,
        seed=3,
    )
    return Lab(workshop, target, np.arange(40), np.arange(80, 160))


@pytest.mark.parametrize("snapshots", [False, True])
def test_distilled_models_learn_from_the_population_only(snapshots: bool) -> None:
    """Records outside it are NaN in one pool: learning from one of them would show."""
    keys = [
        [model.key for models in lab.distilled(num=3, snapshots=snapshots) for model in models]
        for lab in (small_lab(), small_lab(poisoned=True))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == (9 if snapshots else 3)


def test_the_last_snapshot_is_the_distilled_model() -> None:
    lab = small_lab()
    (epochs,), (last,) = lab.distilled(num=1, snapshots=True), lab.distilled(num=1)
    assert len(epochs) == 3
    answers = [lab.logits(model) for model in (*epochs, *last)]
    np.testing.assert_allclose(answers[2], answers[3], atol=1e-4)  # up to rounding
    assert np.abs(answers[1] - answers[3]).max() > 1e-2


def test_distilled_models_imitate_answers_and_not_labels() -> None:
    """Of a teacher that answers the opposite of the labels, imitations do the same."""
    lab = small_lab(epochs=30)
    module = nn.Linear(4, 2)
    module.weight.data[:] = 0
    module.weight.data[0, 0], module.bias.data[:] = 20.0, 0.0
    teacher = replace(lab, target=module_target(module))
    ((model,),) = teacher.distilled(num=1)
    right = lab.population_logits(model).argmax(axis=1) == lab.auxiliary.labels
    # chance is 0.5, labels would give about 1; 0.2 is 6 standard deviations below chance
    assert right.mean() < 0.2


def test_a_regression_model_is_imitated_by_its_numbers() -> None:
    lab = small_lab()
    pool = lab.workshop.pool
    targets = np.full(160, 100, dtype=np.float32)  # far from anything that the teacher says
    build = fresh_builder(nn.Linear(4, 1))
    teacher = module_target(build(0))
    workshop = Workshop(
        Records(pool.ids, pool.inputs, np.zeros(160, np.int64), targets),
        40,
        Task("regression", 2),
        trainer=None,
        build=build,
        config=TrainingConfig(epochs=100, learning_rate=3e-2),
        train_size=40,
        seed=3,
    )
    task = Lab(workshop, teacher, np.arange(40), np.arange(80, 160))
    ((model,),) = task.distilled(num=1)
    np.testing.assert_allclose(model.predict(pool.inputs), teacher.predict(pool.inputs), atol=1e-2)
    with pytest.raises(InputError, match="a regression model has none"):
        task.distilled(num=1, temperature=2.0)


def test_without_auxiliary_records_or_architecture_it_says_so(overfitted: Any) -> None:
    lab = overfitted.candidates
    few = replace(overfitted, candidates=replace(lab, population=lab.population[:5]))
    with pytest.raises(InputError, match="auxiliary records = 5"):
        few.run(ATTACK)
    only_answers = small_lab(has_factory=False)
    with pytest.raises(InputError, match="whose architecture is known"):
        only_answers.distilled(num=1)


@pytest.mark.parametrize("bad", [{"num_distilled_models": 1}, {"temperature": 0}, {"signal": "x"}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**bad)

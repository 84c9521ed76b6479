"""Shadow attack: against scikit-learn itself, class by class, and on trained targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.membership.classifiers import Kind
from attacks.membership.shadow import (
    ATTACK,
    Settings,
    answer_features,
    enough_to_learn,
    shadow_scores,
    signal_features,
)
from attacks.membership.signals import logit_confidence
from fl_audit.errors import InputError
from fl_audit.stats import auc, auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40
KINDS: list[Kind] = list(get_args(Kind))


def problem(num: int = 400) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Two features, of which the first is higher for members."""
    rng = np.random.default_rng(SEED)
    is_member = np.arange(num) % 2 == 0
    features = rng.normal(size=(num, 2))
    features[:, 0] += 2 * is_member
    return features, is_member


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def test_logistic_scores_are_scikit_learns_log_odds() -> None:
    features, is_member = problem()
    asked = features[::7] + 0.1
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    expected = model.fit(features, is_member).decision_function(asked)
    found = shadow_scores(asked, features, is_member, rng=rng())
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_every_classifier_ranks_members_higher_and_repeats_itself(kind: Kind) -> None:
    features, is_member = problem()
    found, again = (
        shadow_scores(features[:200], features[200:], is_member[200:], classifier=kind, rng=rng())
        for _ in range(2)
    )
    assert auc(is_member[:200], found) > 0.8  # 0.92 is the best there is
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, again)


def test_a_classifier_a_class_sees_its_own_class_only() -> None:
    features, is_member = problem()
    classes = np.arange(400) // 200
    features[200:, 0] *= -1  # in class 1 members have the lower feature
    both = (classes, classes)
    found = shadow_scores(features, features, is_member, classes=both, rng=rng())
    for number in (0, 1):
        own = classes == number
        alone = shadow_scores(features[own], features[own], is_member[own], rng=rng())
        np.testing.assert_allclose(found[own], alone, rtol=1e-9)
    assert (
        auc(is_member, found)
        > 0.85
        > auc(is_member, shadow_scores(features, features, is_member, rng=rng()))
    )


def test_a_class_with_too_few_records_is_judged_by_the_classifier_of_all() -> None:
    features, is_member = problem()
    classes = np.where(np.arange(400) < 38, 1, 0)  # 19 members and 19 others
    assert enough_to_learn(classes, is_member) == [0]
    found = shadow_scores(features, features, is_member, classes=(classes, classes), rng=rng())
    of_all = shadow_scores(features, features, is_member, rng=rng())
    np.testing.assert_array_equal(found[:38], of_all[:38])
    assert (found[38:] != of_all[38:]).all()


def test_learns_from_as_many_members_as_others() -> None:
    """Features that say nothing give log-odds of about 0, not of the shares of the two."""
    features = np.random.default_rng(SEED).normal(size=(1000, 2))
    found = shadow_scores(features, features, np.arange(1000) < 900, rng=rng())
    # 100 of each: the intercept has a standard deviation of about 0.14; 0.8 is 5.6 of them
    assert abs(found.mean()) < 0.8 < np.log(9)


def test_num_training_bounds_what_is_learned_from() -> None:
    features, is_member = problem()
    few = shadow_scores(features, features, is_member, num_training=40, rng=rng())
    assert (few != shadow_scores(features, features, is_member, rng=rng())).all()
    assert auc(is_member, few) > 0.8


def test_answer_features_are_sorted_probabilities_and_the_loss() -> None:
    logits = np.log(np.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]]))
    found = answer_features(logits, np.array([0, 0]), num_answers=2)
    np.testing.assert_allclose(found, [[0.5, 0.3, -np.log(0.2)], [0.7, 0.2, -np.log(0.7)]])


def test_signal_features_end_with_the_loss_once() -> None:
    logits, labels = np.array([[2.0, 0.0, 1.0]]), np.array([2])
    found = signal_features(logits, labels, signals=("loss", "logit"))
    loss = np.log(np.exp(logits).sum()) - 1.0
    np.testing.assert_allclose(found, [[logit_confidence(logits, labels)[0], loss]])


@pytest.mark.parametrize("settings", [{}, {"mode": "offline", "features": "signals"}], ids=str)
def test_null_candidates_look_alike(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, found = memorised.run(ATTACK, "null", **settings)
    estimate = auc_ci(is_member, found.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize(
    "settings",
    [{}, {"mode": "offline"}, {"features": "signals", "classifier": "boosting", "per_class": True}],
    ids=str,
)
def test_memorised_members_stand_out(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, found = memorised.run(ATTACK, **settings)
    assert auc_ci(is_member, found.scores, confidence=CONFIDENCE).low > 0.5


def test_offline_a_record_is_judged_without_the_other_candidates(overfitted: Any) -> None:
    """The classifier learns from auxiliary records only."""
    _, whole = overfitted.run(ATTACK, mode="offline")
    few = replace(overfitted.candidates, rows=overfitted.candidates.rows[:10])
    task = replace(overfitted, candidates=few, is_member=overfitted.is_member[:10])
    _, found = task.run(ATTACK, mode="offline")
    np.testing.assert_allclose(found.scores, whole.scores[:10], rtol=1e-12)


def test_says_how_many_classes_have_a_classifier(overfitted: Any) -> None:
    _, found = overfitted.run(ATTACK, per_class=True)
    assert found.notes == ("16 shadow models. 10 of 10 classes have a classifier of their own.",)


def test_one_kind_of_record_and_wrong_shapes_are_refused() -> None:
    features, is_member = problem()
    with pytest.raises(InputError, match="known members = 0: all 400 records"):
        shadow_scores(features, features, np.zeros(400, np.bool_), rng=rng())
    with pytest.raises(InputError, match="same features"):
        shadow_scores(features[:, :1], features, is_member, rng=rng())


@pytest.mark.parametrize("bad", [{"classifier": "tree"}, {"signals": []}, {"num_training": 10}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**bad)


def test_too_few_shadow_models_say_what_to_do(overfitted: Any) -> None:
    task, _ = overfitted.candidates.calibration("online", 2)
    played = replace(overfitted, candidates=task)
    with pytest.raises(InputError, match="Raise num_shadow_models to 3 or more, or use loss_thr"):
        played.run(ATTACK, num_shadow_models=2)

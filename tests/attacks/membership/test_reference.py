"""Reference attack: quantiles of out-models checked with numpy and scipy; and on targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from attacks.membership.reference import ATTACK, Settings, reference_scores
from attacks.membership.signals import logit_confidence, negative_entropy, true_log_probability
from fl_audit.errors import InputError
from fl_audit.stats import auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40
THRESHOLDS = ["linear", "logit", "gaussian", "minimum"]


class Problem:
    """Random logits of a target and eight shadow models on 80 records."""

    def __init__(self) -> None:
        rng = np.random.default_rng(SEED)
        self.labels = rng.integers(4, size=80)
        self.target = rng.normal(0, 2, (80, 4))
        self.shadow = 0.7 * self.target + rng.normal(size=(8, 80, 4))
        self.in_shadow = rng.permuted(np.arange(8)[:, None] < np.full(80, 3), axis=0)

    def scores(self, **settings: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = reference_scores(
            self.target, self.shadow, self.in_shadow, self.labels, **settings
        )
        return found

    def out(self, record: int) -> NDArray[np.float64]:
        """The log-probabilities that out-models give to a record's true class."""
        shadow = true_log_probability(self.shadow, self.labels)[:, record]
        found: NDArray[np.float64] = shadow[~self.in_shadow[:, record]]
        return found


@pytest.mark.parametrize("alpha", [0.15, 0.3, 0.5, 0.8])
def test_linear_claims_members_above_the_interpolated_quantile(alpha: float) -> None:
    problem = Problem()
    claimed = problem.scores(threshold="linear") > np.log((1 - alpha) / alpha)
    values = true_log_probability(problem.target, problem.labels)
    thresholds = [np.quantile(problem.out(r), 1 - alpha, method="hazen") for r in range(80)]
    np.testing.assert_array_equal(claimed, values > thresholds)
    assert 0 < claimed.sum() < 80


@pytest.mark.parametrize("alpha", [0.001, 0.1, 0.5])
def test_gaussian_and_logit_claim_members_above_scipys_quantile(alpha: float) -> None:
    problem = Problem()
    values = true_log_probability(problem.target, problem.labels)
    for name in ("gaussian", "logit"):
        claimed = problem.scores(threshold=name) > np.log((1 - alpha) / alpha)
        for record in range(80):
            value, out = values[record], problem.out(record)
            if name == "logit":  # rescaled confidences, by their definition
                value, out = (np.log(np.exp(x) / (1 - np.exp(x))) for x in (value, out))
            assert claimed[record] == (value > stats.norm.ppf(1 - alpha, *stats.norm.fit(out)))


def test_minimum_claims_only_what_linear_and_logit_both_claim() -> None:
    problem = Problem()
    linear, logit = (problem.scores(threshold=name) for name in ("linear", "logit"))
    np.testing.assert_array_equal(problem.scores(threshold="minimum"), np.minimum(linear, logit))
    assert (linear < logit).any()
    assert (logit < linear).any()


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_what_models_with_the_record_answer_does_not_matter(threshold: str) -> None:
    problem = Problem()
    before = problem.scores(threshold=threshold)
    problem.shadow[problem.in_shadow] = 99.0
    np.testing.assert_array_equal(problem.scores(threshold=threshold), before)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_surer_target_scores_higher(threshold: str) -> None:
    problem = Problem()
    before = problem.scores(threshold=threshold)
    problem.target[np.arange(80), problem.labels] += 1.0
    assert (problem.scores(threshold=threshold) > before).all()


def test_any_signal_may_be_compared() -> None:
    problem = Problem()
    found = problem.scores(threshold="linear", signal=negative_entropy)
    assert not np.array_equal(found, problem.scores(threshold="linear"))
    by_logit = problem.scores(threshold="gaussian", signal=logit_confidence)
    np.testing.assert_array_equal(by_logit, problem.scores(threshold="logit"))


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_null_candidates_look_alike(memorised: Any, mode: str, threshold: str) -> None:
    is_member, output = memorised.run(ATTACK, part="null", mode=mode, threshold=threshold)
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_members_stand_out(memorised: Any, mode: str, threshold: str) -> None:
    is_member, output = memorised.run(ATTACK, mode=mode, threshold=threshold)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


@pytest.mark.parametrize(("mode", "num"), [("online", 2), ("offline", 1)])
def test_linear_does_with_one_out_model_and_gaussian_says_what_it_needs(
    memorised: Any, mode: str, num: int
) -> None:
    is_member, output = memorised.run(ATTACK, mode=mode, num_shadow_models=num)
    assert len(np.unique(output.scores)) > 0.9 * len(is_member)
    needed = 4 if mode == "online" else 2
    with pytest.raises(InputError, match=f"at least {needed}.*population"):
        memorised.run(ATTACK, mode=mode, num_shadow_models=num, threshold="gaussian")


def test_bad_input_is_refused() -> None:
    problem = Problem()
    with pytest.raises(InputError, match="Use one of 'linear'"):
        problem.scores(threshold="median")
    problem.in_shadow[:, 5] = True
    with pytest.raises(InputError, match="out-models of record 5 = 0"):
        problem.scores()
    problem.target[3, 0] = np.nan
    with pytest.raises(InputError, match="logits of record 3"):
        problem.scores()


@pytest.mark.parametrize("threshold", ["logit", "minimum"])
def test_rescaling_needs_a_probability(threshold: str) -> None:
    assert Settings(threshold=threshold, signal="logit").threshold == threshold
    with pytest.raises(ValidationError, match="signal must be 'loss' or 'logit'"):
        Settings(threshold=threshold, signal="entropy")

"""Multi-signal LiRA: equal to LiRA with one signal, and to scipy's multivariate normal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from attacks.membership.lira import ATTACK as LIRA
from attacks.membership.lira import likelihood_ratio
from attacks.membership.multi_signal_lira import ATTACK, Settings, multi_signal_lira_scores
from fl_audit.errors import InputError
from fl_audit.stats import auc, auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40
Mode = Literal["online", "offline"]
Problem = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


def problem(s: int = 2, k: int = 8, n: int = 50) -> Problem:
    """Correlated signals (s, n) and (s, k, n); in-models' are higher."""
    rng = np.random.default_rng(SEED)
    in_shadow = rng.permuted(np.arange(k)[:, None] < np.full(n, k // 2), axis=0)
    common = rng.normal(size=(k + 1, n))
    signals = common + rng.normal(size=(s, k + 1, n)) + rng.normal(0, 3, n)
    signals[:, :k] += in_shadow
    return signals[:, k], signals[:, :k], in_shadow


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_one_signal_is_lira_with_pooled_variance(mode: Mode) -> None:
    target, shadow, in_shadow = problem(s=1)
    found = multi_signal_lira_scores(target, shadow, in_shadow, mode=mode, shrinkage=0.7)
    expected = likelihood_ratio(target[0], shadow[0], in_shadow, mode=mode, variance="pooled")
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_one_signal_and_one_model_of_each_kind_is_lira_too(mode: Mode) -> None:
    """No deviation can be fitted then: the spread over records takes its place."""
    target, shadow, _ = problem(s=1, k=2)
    in_shadow = np.stack([np.arange(50) % 2 == 0, np.arange(50) % 2 == 1])
    found = multi_signal_lira_scores(target, shadow, in_shadow, mode=mode)
    expected = likelihood_ratio(target[0], shadow[0], in_shadow, mode=mode, variance="pooled")
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_overfitted_target_with_one_signal_scores_as_lira(overfitted: Any) -> None:
    _, found = overfitted.run(ATTACK, signals=["logit"])
    _, expected = overfitted.run(LIRA, variance="pooled")
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9, atol=1e-9)


def test_online_scores_are_ratios_of_multivariate_normal_densities() -> None:
    target, shadow, in_shadow = problem(s=3)
    found = multi_signal_lira_scores(target, shadow, in_shadow, shrinkage=0.25)
    expected = np.zeros(50)
    for sign, chosen in ((1, in_shadow), (-1, ~in_shadow)):
        means = np.stack([shadow[:, chosen[:, j], j].mean(axis=1) for j in range(50)])
        products = [
            np.outer(d, d)
            for j in range(50)
            for d in (shadow[:, chosen[:, j], j] - means[j][:, None]).T
        ]
        covariance = np.sum(products, axis=0) / (chosen.sum() - 50)
        shrunk = 0.75 * covariance + 0.25 * np.diag(np.diag(covariance))
        expected += sign * np.array(
            [stats.multivariate_normal.logpdf(target[:, j], means[j], shrunk) for j in range(50)]
        )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_offline_scores_are_sums_of_one_sided_tails() -> None:
    target, shadow, in_shadow = problem()
    found = multi_signal_lira_scores(target, shadow, in_shadow, mode="offline")
    expected = sum(
        likelihood_ratio(target[i], shadow[i], in_shadow, mode="offline", variance="pooled")
        for i in range(2)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    unsure = multi_signal_lira_scores(target - 50, shadow, in_shadow, mode="offline")
    assert (unsure < found).all()  # unusually unsure is no sign of a member


def test_signals_that_say_the_same_say_it_about_once() -> None:
    target, shadow, in_shadow = problem(s=1)
    once = multi_signal_lira_scores(target, shadow, in_shadow)
    copies = target.repeat(3, axis=0), shadow.repeat(3, axis=0), in_shadow
    thrice = multi_signal_lira_scores(*copies, shrinkage=0.1)
    # three copies with correlation 0.9: 3 / (1 + 2 * 0.9) = 1.07 times the evidence, beside a
    # constant that all records share
    np.testing.assert_allclose(thrice - thrice[0], (once - once[0]) * 3 / 2.8, atol=1e-9)


def test_a_second_signal_with_news_helps() -> None:
    rng = np.random.default_rng(SEED)
    is_member = rng.permuted(np.arange(400) < 200)
    in_shadow = rng.permuted(np.arange(16)[:, None] < np.full(400, 8), axis=0)
    target = rng.normal(size=(2, 400)) + 1.5 * is_member
    shadow = rng.normal(size=(2, 16, 400)) + 1.5 * in_shadow
    both = auc(is_member, multi_signal_lira_scores(target, shadow, in_shadow))
    one = auc(is_member, multi_signal_lira_scores(target[:1], shadow[:1], in_shadow))
    assert both > one + 0.03  # Phi(1.5) = 0.93 against Phi(1.5 / sqrt 2) = 0.86, less the fit


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_null_candidates_look_alike(memorised: Any, mode: Mode) -> None:
    is_member, found = memorised.run(ATTACK, "null", mode=mode)
    estimate = auc_ci(is_member, found.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize(
    "settings",
    [{}, {"mode": "offline"}, {"signals": ["logit", "loss", "modified_entropy"]}],
    ids=str,
)
def test_memorised_members_stand_out(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, found = memorised.run(ATTACK, **settings)
    assert auc_ci(is_member, found.scores, confidence=CONFIDENCE).low > 0.5


def test_bad_input_is_refused(overfitted: Any) -> None:
    target, shadow, in_shadow = problem()
    with pytest.raises(InputError, match="must have shape"):
        multi_signal_lira_scores(target, shadow[:1], in_shadow)
    without = in_shadow.copy()
    without[:, 4] = False
    with pytest.raises(InputError, match="in-models of record 4 = 0"):
        multi_signal_lira_scores(target, shadow, without)
    shadow[1, 2, 3] = np.nan
    with pytest.raises(InputError, match="signal 1 of record 3 = nan"):
        multi_signal_lira_scores(target, shadow, in_shadow)
    task, _ = overfitted.candidates.calibration("online", 2)
    with pytest.raises(InputError, match="Raise num_shadow_models to 4"):
        replace(overfitted, candidates=task).run(ATTACK, num_shadow_models=2)


@pytest.mark.parametrize("bad", [{"signals": []}, {"signals": ["logit"] * 2}, {"shrinkage": 0}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**bad)

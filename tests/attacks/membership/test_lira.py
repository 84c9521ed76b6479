"""LiRA: a peer's scores to 1e-9, scipy's normal distribution, and augmented queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats
from torch import nn

from attacks.membership.augmentations import query_transforms
from attacks.membership.lira import ATTACK, Settings, lira_scores
from attacks.shadows.lab import Lab
from attacks.shadows.target import Task, module_target
from attacks.shadows.training import Job
from attacks.shadows.workshop import Workshop
from fl_audit.attack_spec import AttackInput, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.stats import auc, auc_ci

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40
# One synthetic problem and the scores that LeakPro (2026-06) gives on it, with its defaults: 400
# records, 10 classes, 16 shadow models (shared/oracles/membership.npz).
ORACLE = Path(__file__).with_name("oracle.npz")
Mode = Literal["online", "offline"]


def random_problem(k: int = 8, n: int = 40) -> tuple[NDArray[Any], ...]:
    """Logits of a target (n, 3) and of k models (k, n, 3), half of which have each record."""
    rng = np.random.default_rng(SEED)
    target, shadow = rng.normal(0, 2, (n, 3)), rng.normal(0, 2, (k, n, 3))
    in_shadow = rng.permuted(np.arange(k)[:, None] < np.full(n, k // 2), axis=0)
    labels = rng.integers(3, size=n)
    shadow[..., 0] += in_shadow  # so that the two sides differ
    return target, shadow, in_shadow, labels


def phi(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """log p - log(1 - p) by way of p."""
    odds = np.exp(logits)
    true = np.take_along_axis(odds, np.broadcast_to(labels[:, None], (*odds.shape[:-1], 1)), -1)
    p = true[..., 0] / odds.sum(axis=-1)
    found: NDArray[np.float64] = np.log(p / (1 - p))
    return found


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["carlini", "fixed"])
def test_scores_agree_with_a_peer(mode: Mode, variance: Any) -> None:
    given = np.load(ORACLE, allow_pickle=False)
    arrays = [given[n] for n in ("target_logits", "shadow_logits", "in_shadow", "labels")]
    found = lira_scores(*arrays, mode=mode, variance=variance)
    expected = given[f"lira_{mode}_{variance}"]
    assert np.abs(found - expected).max() <= 1e-9
    assert expected.std() > 0.1  # numbers that agree by being all alike would prove nothing


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_pooled_is_scipys_normal_with_deviations_about_each_records_mean(mode: Mode) -> None:
    target, shadow, in_shadow, labels = random_problem()
    statistic, others = phi(target, labels), phi(shadow, labels)
    sides = {}
    for name, chosen in (("in", in_shadow), ("out", ~in_shadow)):
        own = [others[chosen[:, r], r] for r in range(len(labels))]
        squares = sum(float(((x - x.mean()) ** 2).sum()) for x in own)
        freedom = sum(len(x) - 1 for x in own)
        sides[name] = stats.norm([x.mean() for x in own], np.sqrt(squares / freedom))
    expected = sides["in"].logpdf(statistic) - sides["out"].logpdf(statistic)
    if mode == "offline":
        expected = sides["out"].logcdf(statistic)
    found = lira_scores(target, shadow, in_shadow, labels, mode=mode, variance="pooled")
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_from_64_models_carlini_fits_a_deviation_to_each_record() -> None:
    for k, same in ((62, False), (64, True)):
        problem = random_problem(k)
        carlini = lira_scores(*problem, variance="carlini")
        assert np.array_equal(carlini, lira_scores(*problem, variance="fixed")) == same


def test_pooled_offline_needs_one_model_and_keeps_apart_what_underflows() -> None:
    target, shadow, in_shadow, labels = random_problem(k=1, n=6)
    in_shadow[:] = False
    target[np.arange(6), labels] = [-9000.0, -900.0, -90.0, 0.0, 9.0, 30.0]
    shadow[:, np.arange(6), labels] = 0.0
    found = lira_scores(target, shadow, in_shadow, labels, mode="offline", variance="pooled")
    assert np.isfinite(found).all()
    assert (np.diff(found[:5]) > 0).all()


class Untrained:
    """A trainer of linear models that learn nothing: their weights come from the job's seed."""

    description = "untrained"
    key: str | None = None

    def train(self, jobs: Sequence[Job], on_model: Callable[[int, Any], None]) -> None:
        for number, job in enumerate(jobs):
            on_model(number, linear(job.seed))


def linear(seed: int) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def test_the_score_is_the_mean_over_augmented_queries() -> None:
    rng = np.random.default_rng(SEED)
    images = rng.normal(size=(30, 1, 4, 4)).astype(np.float32)
    pool = Records(np.arange(30), images, rng.integers(3, size=30))
    task = Task("classification", 3)
    workshop = Workshop(pool, 30, task, trainer=Untrained(), train_size=15, seed=0)
    lab = Lab(workshop, module_target(linear(5)), np.arange(30), np.arange(0))

    def run(num: int) -> NDArray[np.float64]:
        settings = Settings(num_shadow_models=6, num_augmentations=num)
        output = ATTACK.run(AttackInput(view=None, settings=settings, rng=rng, lab=lab))  # type: ignore[arg-type]
        assert isinstance(output, MembershipScores)
        return output.scores

    in_shadow = np.stack([s.trained_on for s in workshop.shadows("online", 6)])
    singles = []
    for _, transform in query_transforms((1, 4, 4), 4):
        changed = images if transform is None else np.ascontiguousarray(transform(images))
        ask = [s.target.predict(changed) for s in workshop.shadows("online", 6)]
        target = lab.target.predict(changed).astype(np.float64)
        shadow = np.stack(ask).astype(np.float64)
        singles.append(lira_scores(target, shadow, in_shadow, pool.labels, variance="pooled"))
    np.testing.assert_allclose(run(1), singles[0], rtol=1e-12)
    np.testing.assert_allclose(run(4), np.mean(singles, axis=0), rtol=1e-12)
    assert not np.allclose(singles[0], singles[1])


def test_augmented_queries_need_images(memorised: Any) -> None:
    with pytest.raises(InputError, match="need images"):
        memorised.run(ATTACK, num_augmentations=2)


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["carlini", "fixed", "pooled"])
def test_null_candidates_look_alike(memorised: Any, mode: str, variance: str) -> None:
    is_member, output = memorised.run(ATTACK, part="null", mode=mode, variance=variance)
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["carlini", "fixed", "pooled"])
def test_members_stand_out(memorised: Any, mode: str, variance: str) -> None:
    is_member, output = memorised.run(ATTACK, mode=mode, variance=variance)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_too_few_models_name_the_record_and_the_remedy() -> None:
    target, shadow, in_shadow, labels = random_problem()
    in_shadow[:, 7] = False
    with pytest.raises(InputError, match=r"in-models of record 7 = 0.*mode = 'offline'"):
        lira_scores(target, shadow, in_shadow, labels)
    lira_scores(target, shadow, in_shadow, labels, mode="offline")
    in_shadow[0, 7] = True
    with pytest.raises(InputError, match=r"in-models of record 7 = 1: at least 2"):
        lira_scores(target, shadow, in_shadow, labels, variance="fixed")


def test_one_online_model_is_refused_with_what_to_use_instead(memorised: Any) -> None:
    with pytest.raises(InputError, match=r"at least 2.*rmia with mode = 'offline'"):
        memorised.run(ATTACK, num_shadow_models=1)


def test_bad_input_is_refused() -> None:
    target, shadow, in_shadow, labels = random_problem()
    with pytest.raises(InputError, match="Use 'carlini', 'fixed' or 'pooled'"):
        lira_scores(target, shadow, in_shadow, labels, variance="global")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be booleans"):
        lira_scores(target, shadow, in_shadow.astype(int), labels)
    shadow[2, 11, 1] = np.nan
    with pytest.raises(InputError, match="logits of record 11"):
        lira_scores(target, shadow, in_shadow, labels)


def test_another_signal_takes_the_place_of_the_log_odds(memorised: Any) -> None:
    is_member, found = memorised.run(ATTACK, signal="modified_entropy")
    assert auc(is_member, found.scores) > 0.6
    assert (found.scores != memorised.run(ATTACK)[1].scores).any()
    with pytest.raises(ValidationError, match="signal"):
        Settings(signal="loss_of_face")

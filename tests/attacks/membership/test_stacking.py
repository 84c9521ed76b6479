"""Stacking: known attacks, what is fitted on what, what cannot be stacked, and trained targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from attacks.membership.loss_threshold import ATTACK as LOSS
from attacks.membership.stacking import ATTACK, Settings, stacking_scores
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError, UnknownNameError
from fl_audit.stats import auc, auc_ci
from fl_audit.threat_model import Knowledge, Observation

SEED = 20_261_123
CONFIDENCE = 1 - 1e-6 / 40  # false-failure rate of an interval over fresh seeds: 1e-6 / 40


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def problem(num: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Three attacks' scores (3, n): two that tell something, one of pure noise."""
    draw = np.random.default_rng([SEED, seed])
    is_member = draw.permuted(np.arange(num) < num // 2)
    return draw.normal(size=(3, num)) + np.array([[1.0], [1.0], [0.0]]) * is_member, is_member


def test_independent_attacks_add_up_and_noise_does_not() -> None:
    known, members = problem(2000, 0)
    scores, is_member = problem(2000, 1)
    found = stacking_scores(scores, known, members, rng=rng())
    # two shifts of one deviation: Phi(1) = 0.84 together, 0.76 alone
    assert auc(is_member, found) > auc(is_member, scores[0]) + 0.04
    np.testing.assert_allclose(
        found, stacking_scores(scores[:2], known[:2], members, rng=rng()), atol=0.5
    )


def test_one_attack_is_ranked_as_before_whatever_its_units() -> None:
    known, members = problem(500, 0)
    scores, _ = problem(500, 1)
    for change in (lambda x: x, lambda x: 1e6 * x - 3, np.exp):
        found = stacking_scores(change(scores[:1]), change(known[:1]), members, rng=rng())
        assert stats.spearmanr(found, scores[0]).statistic > 1 - 1e-12
        assert len(np.unique(found)) == 500


def test_scores_with_few_values_are_no_trouble() -> None:
    """Where quartiles coincide (a gap attack), and where all scores do."""
    known, members = problem(500, 0)
    known[1] = members & (np.arange(500) % 3 == 0)
    known[2] = 7.0
    found = stacking_scores(known, known, members, rng=rng())
    assert np.isfinite(found).all()
    assert auc(members, found) > auc(members, known[0])


def test_weights_come_from_the_known_scores() -> None:
    """An attack that is turned round on the shadow model is read the other way round."""
    known, members = problem(500, 0)
    scores, is_member = problem(500, 1)
    assert auc(is_member, stacking_scores(scores, -known, members, rng=rng())) < 0.3


@pytest.mark.parametrize("settings", [{}, {"mode": "offline"}], ids=str)
def test_null_candidates_look_alike(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, found = memorised.run(ATTACK, "null", **settings)
    estimate = auc_ci(is_member, found.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize(
    "settings",
    [{}, {"mode": "offline"}, {"attacks": ["base", {"name": "lira", "mode": "offline"}]}],
    ids=str,
)
def test_memorised_members_stand_out(memorised: Any, settings: dict[str, Any]) -> None:
    is_member, found = memorised.run(ATTACK, **settings)
    assert auc_ci(is_member, found.scores, confidence=CONFIDENCE).low > 0.5


def stack_of(spec: AttackSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry know this one attack only."""
    monkeypatch.setattr("attacks.registry.load_attack", lambda name: spec)


def test_weighs_on_a_shadow_model_and_tells_attacks_nothing_about_members(
    overfitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[AttackInput] = []

    def run(given: AttackInput) -> MembershipScores:
        seen.append(given)
        return MembershipScores(given.rng.normal(size=len(given.lab.rows)))

    stack_of(replace(LOSS, run=run, most_calibration=100), monkeypatch)
    lab = overfitted.candidates
    overfitted.run(ATTACK, attacks=["loss_threshold", "loss_threshold"])
    played = lab.workshop.shadows("online", 1)[0]
    assert [given.lab.target is played.target for given in seen] == [True, True, False, False]
    assert all(given.lab.target is lab.target for given in seen[2:])
    assert [len(given.lab.rows) for given in seen] == [100, 100, 300, 300]
    assert all(given.known is None and given.lab.left_out == {0, 1} for given in seen[:2])
    draws = [given.rng.normal() for given in seen]
    assert len(set(draws)) == 4  # a generator for each


def test_stacked_attacks_share_mode_and_models_unless_they_say_otherwise(
    overfitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attacks.registry import load_attack

    seen: list[tuple[str, int]] = []

    def run(given: AttackInput) -> MembershipScores:
        seen.append((given.settings.mode, given.settings.num_shadow_models))
        return MembershipScores(given.rng.normal(size=len(given.lab.rows)))

    stack_of(replace(load_attack("lira"), run=run), monkeypatch)
    own = {"name": "lira", "num_shadow_models": 3, "mode": "online"}
    overfitted.run(ATTACK, attacks=["lira", own], mode="offline", num_shadow_models=8)
    assert seen == [("offline", 8), ("online", 3)] * 2


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"name": "stacking"}, "a stack cannot hold a stack"),
        ({"knows": Knowledge.LABELS | Knowledge.KNOWN_MEMBERS}, "needs more than"),
        ({"requires": Observation.FINAL_MODEL}, "needs more than"),
        ({"requires": Observation.AGGREGATE}, "no attack on the model"),
        ({"kind": "reconstruction"}, "no attack on the model"),
    ],
)
def test_refuses_what_cannot_be_stacked(
    overfitted: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], rule: str
) -> None:
    stack_of(replace(LOSS, **changes), monkeypatch)
    with pytest.raises(InputError, match=rule):
        overfitted.run(ATTACK)


def test_says_what_is_wrong_with_a_stacked_attack(overfitted: Any) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'lira'"):
        overfitted.run(ATTACK, attacks=["lirra"])
    with pytest.raises(InputError, match=r"setting 'variants' of 'lira'.*It takes: mode"):
        overfitted.run(ATTACK, attacks=[{"name": "lira", "variants": "fixed"}])


def test_too_few_shadow_models_say_how_many_will_do(overfitted: Any) -> None:
    with pytest.raises(InputError, match=r"num_shadow_models = 2: a stack .* Raise it to 4"):
        overfitted.run(ATTACK, attacks=["lira"], num_shadow_models=2)
    overfitted.run(ATTACK, attacks=["loss_threshold"], num_shadow_models=2)
    task, _ = overfitted.candidates.calibration("online", 4)
    played = replace(overfitted, candidates=task)
    with pytest.raises(InputError, match="Raise num_shadow_models to 6 or more"):
        played.run(ATTACK, attacks=["lira"], num_shadow_models=4)


def test_bad_input_is_refused() -> None:
    known, members = problem(20, 0)
    with pytest.raises(InputError, match="one row an attack"):
        stacking_scores(known[:2], known, members, rng=rng())
    with pytest.raises(ValidationError):
        Settings(attacks=())


def test_same_seed_same_bytes(overfitted: Any) -> None:
    first, again = (overfitted.run(ATTACK)[1].scores for _ in range(2))
    assert first.tobytes() == again.tobytes()

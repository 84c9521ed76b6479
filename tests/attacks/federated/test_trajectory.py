"""Features of the trajectory: what they are, what is missing, and what is granted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.audit import audit_run
from attacks.federated.trajectory import ATTACK, Settings, filled, trajectory_features
from attacks.requests import check_attacks, parse_attacks
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError, ObservationError
from fl_audit.results import MembershipResult, UnavailableRecord
from fl_audit.threat_model import PRESETS, Knowledge, ThreatModel

SEED = 20_261_125


def trace(hand: Any, folder: Path) -> tuple[Any, Any]:
    rng = np.random.default_rng(SEED)
    data, model = hand.records(6, rng=rng), hand.weights(rng=rng)
    replies = {i: hand.step(model, hand.gradient(model, data, [i])) for i in range(3)}
    rounds = [(model, replies, model), (model, {0: replies[0], 1: replies[1]}, model)]
    return hand.view(folder, rounds), data


def test_every_round_has_the_same_features(hand: Any, tmp_path: Path) -> None:
    view, data = trace(hand, tmp_path / "trace")
    both = trajectory_features(view, data)
    parts = [trajectory_features(view, data, rounds=[number]) for number in (1, 2)]
    np.testing.assert_array_equal(both, np.concatenate(parts, axis=1))
    assert np.isfinite(both).all()


def test_a_round_without_the_client_in_question_is_missing(hand: Any, tmp_path: Path) -> None:
    view, data = trace(hand, tmp_path / "trace")
    features = trajectory_features(view, data, asked=np.array([0, 1, 2, 0, 1, 2]))
    missing = np.isnan(features)
    assert not missing[[0, 1, 3, 4]].any()
    assert missing[[2, 5]].any()
    assert not missing[:, : features.shape[1] // 2].any()  # round 1 has all three
    whole = filled(features, np.nanmean(features, axis=0))
    assert np.isfinite(whole).all()


def test_known_members_are_not_scored(memorising_run: Path) -> None:
    attack = {"name": "trajectory", "known_fraction": 0.3}
    (result,) = audit_run(memorising_run, attacks=[attack])
    assert isinstance(result, MembershipResult)
    assert result.is_scored is not None
    assert result.is_scored.sum() == round(0.7 * len(result.scores))
    assert result.record.knows == ["labels", "known-members"]


def test_whole_groups_are_known(memorising_run: Path) -> None:
    """Known records drawn one by one would pull the classes of those that are scored the other
    way: a learned attack came out below chance where there was nothing to find."""
    (result,) = audit_run(memorising_run, attacks=["trajectory"])
    assert isinstance(result, MembershipResult)
    assert result.is_scored is not None
    assert result.is_member is not None
    pairs = result.is_scored.reshape(-1, 2)
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])
    assert result.is_member[result.is_scored].mean() == 0.5


@pytest.mark.parametrize(
    ("known", "rule"),
    [
        ([], "known_fraction = 0.5: 0 members and 0 non-members.*Raise known_fraction"),
        ([0, 2], "known_fraction = 0.5: 2 members and 0 non-members"),
    ],
)
def test_both_kinds_must_be_known(hand: Any, tmp_path: Path, known: list[int], rule: str) -> None:
    view, data = trace(hand, tmp_path / "trace")
    rows = np.array([*known], dtype=np.int64)
    given = AttackInput(
        view=view,
        settings=Settings(),
        rng=np.random.default_rng(SEED),
        candidates=data,
        known=(rows, rows % 2 == 0),
    )
    with pytest.raises(InputError, match=rule):
        ATTACK.run(given)


def test_a_fraction_that_leaves_no_member_to_score_is_named(small_federation: Path) -> None:
    attack = {"name": "trajectory", "known_fraction": 0.999}
    (result,) = audit_run(small_federation, attacks=[attack])
    assert isinstance(result.record, UnavailableRecord)
    assert "no natural member is left to score" in result.record.reason
    assert "known_fraction" in result.record.reason


def test_settings_decide_what_must_be_known() -> None:
    ignorant = ThreatModel("server", sees=PRESETS["curious-server"].sees, knows=Knowledge.LABELS)
    with pytest.raises(ObservationError, match="known-members"):
        check_attacks(parse_attacks("trajectory"), ignorant)
    with pytest.raises(ObservationError, match="auxiliary-data"):
        check_attacks(parse_attacks({"name": "trajectory", "fit": "shadow"}), ignorant)


def test_no_signal(hand: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    data, model = hand.records(6, rng=rng), hand.weights(rng=rng)
    with pytest.raises(InputError, match="no signal"):
        trajectory_features(hand.view(tmp_path / "trace", [(model, {0: model}, None)]), data)

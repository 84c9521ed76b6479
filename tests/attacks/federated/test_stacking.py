"""Stacking attacks on updates: what it can hold, how ranks travel between federations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.audit import audit_run
from attacks.federated.stacking import Settings, _bases, _run_bases, normal_ranks
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError, UnknownNameError
from fl_audit.results import MembershipResult
from fl_audit.run_directory import RunDirectory
from simulations.rehearsals import run_rehearser


def test_ranks_do_not_depend_on_scale_and_ties_share_a_place() -> None:
    scores = np.array([3.0, 1.0, 2.0, 2.0])
    found = normal_ranks(scores)
    np.testing.assert_allclose(found, normal_ranks(np.exp(50 * scores)))
    assert found[2] == found[3]
    assert found.sum() == pytest.approx(0)


@pytest.mark.parametrize(
    ("base", "rule"),
    [
        ("federated_stacking", "cannot hold a stack"),
        ("loss_threshold", "no membership attack on updates"),
        ({"name": "cosine", "layer": ["0"]}, "setting 'layer' of 'cosine'"),
    ],
)
def test_what_a_stack_cannot_hold(small_federation: Path, base: Any, rule: str) -> None:
    rehearser = run_rehearser(RunDirectory.open(small_federation), trusted=False)
    attack = {"name": "federated_stacking", "attacks": [base], "num_shadow_federations": 2}
    (result,) = audit_run(small_federation, attacks=[attack], rehearser=rehearser)
    assert result.record.kind == "unavailable"
    assert rule in result.record.reason  # type: ignore[union-attr]


def test_a_base_that_cannot_run_here_is_named(hand: Any, tmp_path: Path) -> None:
    """Of two clients, fedmia has no others to compare with."""
    rng = np.random.default_rng(20_261_125)
    data, model = hand.records(6, rng=rng), hand.weights(rng=rng)
    replies = {i: hand.step(model, hand.gradient(model, data, [i])) for i in range(2)}
    view = hand.view(tmp_path / "trace", [(model, replies, model)])
    given = AttackInput(view=view, settings=Settings(), rng=rng, candidates=data)
    rule = (
        r"federated_stacking.attacks = 'fedmia': the stack cannot run it here: clients = 2: .*"
        r'Leave it out of attacks = \["cosine", "fedmia"\]'
    )
    with pytest.raises(InputError, match=rule):
        _run_bases(_bases(Settings(attacks=("cosine", "fedmia"))), given, view, 0)


def test_unknown_attacks_in_a_stack_get_a_suggestion(small_federation: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        _bases(Settings(attacks=("cosin",)))


def test_best_is_the_attack_that_did_best_on_the_shadow_federations(small_federation: Path) -> None:
    rehearser = run_rehearser(RunDirectory.open(small_federation), trusted=False)
    attack = {
        "name": "federated_stacking",
        "num_shadow_federations": 2,
        "combine": "best",
        "attacks": ["cosine", "gradient_regression"],
    }
    best, each = (
        audit_run(small_federation, attacks=[name], rehearser=rehearser)[0]
        for name in (attack, "gradient_regression")
    )
    assert isinstance(best, MembershipResult)
    assert isinstance(each, MembershipResult)
    assert best.record.notes[0].startswith("Chose gradient_regression")
    order = [np.argsort(np.argsort(r.scores, kind="stable"), kind="stable") for r in (best, each)]
    assert np.corrcoef(*order)[0, 1] > 0.99  # the same ranking, up to near ties

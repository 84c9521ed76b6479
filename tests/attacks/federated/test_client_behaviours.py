"""Behaviours of malicious clients: from what was received and would have been sent to what is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from attacks.federated.client_behaviours import (
    BEHAVIOURS,
    GradientAscent,
    Means,
    Poison,
    Scaling,
    SignFlip,
    Turn,
)
from attacks.federated.rounds import record_losses
from attacks.federated.tampering import scale_update
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from fl_audit.records import Records

SEED = 20_261_125
BEFORE = {"0.weight": np.zeros((3, 4), np.float32), "0.bias": np.zeros(3, np.float32)}
HIGHER = {"0.weight": np.eye(3, 4, dtype=np.float32), "0.bias": np.zeros(3, np.float32)}
AFTER = {"0.weight": np.full((3, 4), 0.5, np.float32), "0.bias": np.ones(3, np.float32)}


def build() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Linear(4, 3))


def targets(n: int = 5) -> Records:
    rng = np.random.default_rng(SEED)
    return Records(np.arange(n), rng.random((n, 4)).astype(np.float32), np.arange(n) % 3)


def turn(server_round: int = 1, before: Arrays = BEFORE) -> Turn:
    return Turn(server_round, before, AFTER, np.random.default_rng(SEED), {})


def means(extras: list[Records] | None = None, records: Records | None = None) -> Means:
    def retrain(before: Arrays, extra: Records, server_round: int) -> Arrays:
        assert extras is not None
        extras.append(extra)
        return AFTER

    wanted = targets() if records is None else records
    return Means(model=build, targets=wanted, own=wanted, num_classes=3, retrain=retrain)


def test_scaling_and_sign_flip() -> None:
    found = Scaling(factor=4.0).forge(turn(), means())
    np.testing.assert_array_equal(found["0.bias"], np.full(3, 4, np.float32))
    flipped = SignFlip(strength=2.0).forge(turn(), means())
    np.testing.assert_array_equal(flipped["0.weight"], np.full((3, 4), -1, np.float32))


@pytest.mark.filterwarnings("error")
def test_the_size_of_a_lie_is_bounded_and_what_overflows_is_infinite() -> None:
    for kind, key in ((Scaling, "factor"), (SignFlip, "strength"), (Poison, "boost")):
        with pytest.raises(ValidationError, match="less than or equal to 1000000"):
            kind.model_validate({key: 1e38})
    huge = {"0.bias": np.full(3, 1e38, np.float32)}
    start = {"0.bias": np.zeros(3, np.float32)}
    assert (scale_update(start, huge, 1e6)["0.bias"] == np.inf).all()


def test_ascent_raises_the_targets_loss_on_top_of_the_honest_update() -> None:
    given = means()
    sent = GradientAscent(rate=0.5, steps=3, boost=1.0).forge(turn(before=HIGHER), given)
    honest = record_losses(build(), AFTER, given.targets).mean()
    assert record_losses(build(), sent, given.targets).mean() > honest


def test_boost_multiplies_the_climb_alone() -> None:
    once, twice = (
        GradientAscent(rate=0.5, steps=3, boost=boost).forge(turn(before=HIGHER), means())
        for boost in (1, 2)
    )
    assert (once["0.bias"] != AFTER["0.bias"]).any()
    for name, end in AFTER.items():
        np.testing.assert_allclose(twice[name] - end, 2 * (once[name] - end), atol=1e-6)


def test_rounds_between_ascents_are_honest() -> None:
    behaviour = GradientAscent(every=3)
    for server_round, climbs in ((1, True), (2, False), (3, False), (4, True)):
        now = turn(server_round)
        assert (behaviour.forge(now, means()) is not now.after) == climbs


def test_poison_trains_on_copies_and_boosts_the_update() -> None:
    extras: list[Records] = []
    found = Poison(copies=2, boost=3.0).forge(turn(), means(extras))
    assert len(extras[0]) == 10
    assert extras[0].labels.tolist() == np.repeat((np.arange(5) % 3 + 1) % 3, 2).tolist()
    np.testing.assert_array_equal(found["0.bias"], np.full(3, 3, np.float32))


def test_what_needs_targets_says_so() -> None:
    for behaviour in (GradientAscent(), Poison()):
        with pytest.raises(InputError, match="no targets"):
            behaviour.check(means(records=targets().take([])))
    Scaling().check(means(records=targets().take([])))


@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_every_behaviour_has_defaults_and_refuses_unknown_settings(name: str) -> None:
    BEHAVIOURS[name]()
    with pytest.raises(ValidationError):
        BEHAVIOURS[name].model_validate({"unknown": 1})


def test_every_behaviour_is_listed_for_scenarios() -> None:
    from fl_audit.factories import load_attribute
    from simulations.adversaries import CLIENT

    assert {n: load_attribute(path, "adversary") for n, path in CLIENT.items()} == BEHAVIOURS

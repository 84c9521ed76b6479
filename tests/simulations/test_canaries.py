"""Canaries: what is changed, what stays, and that the coin alone tells a pair apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from fl_audit.errors import InputError
from fl_audit.game import KINDS
from fl_audit.records import Records
from simulations.canaries import MISLABELLED, OUT_OF_DISTRIBUTION, plant
from simulations.data import load_dataset
from simulations.population import Population, build_population
from simulations.scenario import Data, parse_scenario

FALSE_FAILURE = 1e-6
CANARIES = {"mislabelled": 20, "out_of_distribution": 15}
DIGITS = load_dataset(Data()).records


def build(**game: Any) -> Population:
    return build_population(parse_scenario({"game": {"canaries": CANARIES, **game}}))


@pytest.mark.parametrize("side", ["candidates", "null"])
def test_kinds_are_public_and_each_changes_what_it_says(side: str) -> None:
    game = build().game
    records = getattr(game, side)
    kinds = {"candidates": game.kinds, "null": game.null_kinds}[side]
    assert kinds is not None
    before = DIGITS.take(records.ids)  # ids stay those of the source
    groups = kinds.reshape(-1, 2)
    assert (groups[:, 0] == groups[:, 1]).all()
    assert [int((groups[:, 0] == k).sum()) for k in (1, 2)] == [20, 15]
    labels = records.labels.reshape(-1, 2)
    assert (labels[:, 0] == labels[:, 1]).all()  # so that no label tells the member
    assert (records.labels[kinds == MISLABELLED] != before.labels[kinds == MISLABELLED]).all()
    for row, kind in enumerate(kinds):
        same = np.array_equal(records.inputs[row], before.inputs[row])
        assert same == (kind != OUT_OF_DISTRIBUTION)
        np.testing.assert_array_equal(
            np.sort(records.inputs[row].ravel()), np.sort(before.inputs[row].ravel())
        )
    natural = kinds == 0
    np.testing.assert_array_equal(records.labels[natural], before.labels[natural])


def test_the_client_trains_on_the_changed_record() -> None:
    population = build()
    game, truth = population.game, population.truth
    assert game.kinds is not None
    for row in np.flatnonzero(truth.is_member & (game.kinds != 0)):
        held = population.clients[truth.client[row]]
        (place,) = np.flatnonzero(held.ids == game.candidates.ids[row])
        np.testing.assert_array_equal(held.inputs[place], game.candidates.inputs[row])
        assert held.labels[place] == game.candidates.labels[row]


def test_without_canaries_nothing_is_drawn_otherwise() -> None:
    plain, with_some = build_population(parse_scenario({})), build()
    assert plain.game.kinds is None
    assert plain.truth.is_member.sum() == 200
    # 200 slots in all: canaries take theirs from the natural ones
    assert with_some.game.kinds is not None
    assert (with_some.game.kinds == 0).sum() == 2 * (200 - 35)
    assert any("20 mislabelled, 15 out-of-distribution" in n for n in with_some.game.rules.notes)


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    """Chi-square at level 1e-6 over 3,000 groups of class 2 of 5."""
    n = 3_000
    records = Records(np.arange(n), np.zeros((n, 1), np.float32), np.full(n, 2))
    kinds = np.full(n, MISLABELLED)
    rng = np.random.default_rng(20_261_125)
    changed = plant(records, np.arange(n), kinds, width=1, num_classes=5, rng=rng)
    counts = np.bincount(changed.labels, minlength=5)
    assert counts[2] == 0
    assert stats.chisquare(counts[[0, 1, 3, 4]]).pvalue > FALSE_FAILURE
    assert (records.labels == 2).all()  # what was given is not changed


def test_the_same_seed_gives_the_same_canaries_and_another_other_ones() -> None:
    tables = {"game": {"canaries": CANARIES}}
    a, b, c = (build_population(parse_scenario({**tables, "seed": s})) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.game.candidates.inputs, b.game.candidates.inputs)
    np.testing.assert_array_equal(a.game.candidates.labels, b.game.candidates.labels)
    assert not np.array_equal(a.game.candidates.inputs, c.game.candidates.inputs)


def test_groups_may_be_larger_than_pairs() -> None:
    game = build(non_members_per_member=2, members=40).game
    assert game.kinds is not None
    labels = game.candidates.labels.reshape(-1, 3)
    assert (labels == labels[:, :1]).all()


def test_what_cannot_be_planted_is_refused() -> None:
    with pytest.raises(InputError, match="none is left to be natural"):
        build(canaries={"mislabelled": 200})
    with pytest.raises(InputError, match="every record is mislabelled already"):
        parse_scenario({"data": {"random_labels": True}, "game": {"canaries": CANARIES}})
    one = Records(np.arange(2), np.zeros((2, 1), np.float32), np.zeros(2, np.int64))
    with pytest.raises(InputError, match="another class"):
        plant(
            one,
            np.arange(2),
            np.full(2, MISLABELLED),
            width=2,
            num_classes=1,
            rng=np.random.default_rng(0),
        )


def test_the_kinds_have_one_order() -> None:
    assert KINDS == ("natural", "mislabelled", "out-of-distribution")

"""Populations: the lots are fair, the sides alike, and nobody trains on what it should not."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fl_audit.errors import InputError
from simulations.population import Population, build_population
from simulations.scenario import parse_scenario

FALSE_FAILURE = 1e-6


def build(**tables: Any) -> Population:
    return build_population(parse_scenario(tables))


PARTITIONS: list[dict[str, Any]] = [
    {"kind": "iid"},
    {"kind": "dirichlet", "alpha": 0.3},
    {"kind": "by-class", "classes_per_client": 3},
]


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda p: p["kind"])
@pytest.mark.parametrize("others", [1, 3])
def test_every_candidate_is_where_the_truth_says(partition: dict[str, Any], others: int) -> None:
    population = build(partition=partition, game={"non_members_per_member": others, "members": 90})
    game, truth = population.game, population.truth
    trained = np.concatenate([c.ids for c in population.clients])
    assert len(set(trained)) == len(trained)
    for row, candidate in enumerate(game.candidates.ids):
        client = population.clients[truth.client[row]]
        assert (candidate in client.ids) == truth.is_member[row]
        assert (candidate in trained) == truth.is_member[row]
    for never in (game.null.ids, game.auxiliary.ids, population.test.ids):
        assert not set(never) & set(trained)
        assert not set(never) & set(game.candidates.ids)


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda p: p["kind"])
def test_members_and_non_members_have_the_same_classes(partition: dict[str, Any]) -> None:
    population = build(partition=partition)
    labels, member = population.game.candidates.labels, population.truth.is_member
    assert sorted(labels[member]) == sorted(labels[~member])
    null, lots = population.game.null.labels, population.truth.null_is_member
    assert sorted(null[lots]) == sorted(null[~lots])


def test_each_group_has_one_member_drawn_fairly() -> None:
    """The lot falls on each place of a group equally often: chi-square at level 1e-6."""
    counts = np.zeros(3)
    for seed in range(20):
        population = build(seed=seed, game={"non_members_per_member": 2})
        groups = population.truth.is_member.reshape(-1, 3)
        assert (groups.sum(axis=1) == 1).all()
        counts += groups.sum(axis=0)
    assert stats.chisquare(counts).pvalue > FALSE_FAILURE


def test_standard_digits_federation() -> None:
    population = build()
    assert [len(c) for c in population.clients] == [40] * 5
    assert population.truth.is_member.sum() == 200
    assert (~population.truth.is_member).sum() == 200
    assert len(population.game.null) == 400


def test_a_data_set_that_runs_short_says_so() -> None:
    population = build(game={"non_members_per_member": 9, "members": 200})
    assert population.truth.is_member.sum() < 200
    assert "has enough records for" in population.game.rules.notes[0]


def test_same_seed_same_population_and_other_seed_another() -> None:
    a, b, c = build(seed=1), build(seed=1), build(seed=2)
    assert (a.game.candidates.ids == b.game.candidates.ids).all()
    assert (a.truth.is_member == b.truth.is_member).all()
    assert not (a.game.candidates.ids == c.game.candidates.ids).all()


def test_all_that_is_there_when_no_number_is_asked() -> None:
    population = build(data={"examples_per_client": "all"})
    assert sum(len(c) for c in population.clients) > 300


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> str:
    """A function that gives 20,000 records of 10 classes, of which the last is rare."""

    def make() -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((20_000, 1)), np.minimum(np.arange(20_000) // 2_200, 9)

    module = types.ModuleType("large_data")
    module.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "large_data", module)
    return "large_data:make"


@pytest.mark.parametrize("clients", [None, [1, 2]])
@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda p: p["kind"])
def test_all_leaves_out_of_training_little_more_than_the_game_needs(
    partition: dict[str, Any], clients: list[int] | None, large: str
) -> None:
    """200 members need 200 non-members, and 400 records for the null control."""
    data = {"name": large, "examples_per_client": "all", "test": 1000}
    population = build(partition=partition, data=data, game={"clients": clients, "auxiliary": 0})
    held_back = 19_000 - sum(len(c) for c in population.clients)
    assert 600 <= held_back <= (1_200 if clients is None else 6_000)  # 6,000: all of one class
    assert population.truth.is_member.sum() == 200
    assert len(population.game.null) == 400
    assert population.game.rules.notes == []


@pytest.mark.parametrize(("clients", "each", "classes"), [(2, 2, 4), (2, 5, 10), (3, 1, 3)])
def test_by_class_trains_on_as_many_records_as_asked_for(
    clients: int, each: int, classes: int
) -> None:
    population = build(
        federation={"clients": clients},
        partition={"kind": "by-class", "classes_per_client": each},
        game={"members": 20},
    )
    assert sum(len(c) for c in population.clients) == 40 * clients
    assert all(len(set(c.labels)) <= each for c in population.clients)
    assert len(set(np.concatenate([c.labels for c in population.clients]))) == classes
    notes = [f"Clients hold {classes} of 10 classes, by lot."] if classes < 10 else []
    assert population.game.rules.notes == notes


def test_by_class_refuses_more_than_the_classes_held_have() -> None:
    with pytest.raises(InputError, match=r"of the 2 classes that clients hold.*classes_per_client"):
        build(
            federation={"clients": 2},
            data={"examples_per_client": 300},
            partition={"kind": "by-class", "classes_per_client": 1},
        )


def test_random_labels_are_spread_over_all_classes() -> None:
    population = build(data={"random_labels": True})
    labels = np.concatenate([c.labels for c in population.clients])
    assert len(set(labels)) == 10


def test_the_question_may_name_the_client() -> None:
    """It is the same for all of a group, so it says nothing about who of them is a member."""
    by_default = build().game
    assert by_default.asked is None
    population = build(game={"question": "client"})
    game, truth = population.game, population.truth
    assert game.asked is not None
    assert game.null_asked is not None
    np.testing.assert_array_equal(game.asked, truth.client)
    pairs = game.asked.reshape(-1, 2)
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])
    assert game.null_asked.shape == (len(game.null),)
    assert set(game.null_asked.tolist()) <= set(range(5))
    np.testing.assert_array_equal(by_default.candidates.ids, game.candidates.ids)


def test_nobody_is_asked_about_the_adversarys_own_records() -> None:
    tables: dict[str, Any] = {
        "threat_model": {"preset": "coalition", "controls": [0]},
        "game": {"members": 60},
    }
    assert 0 not in build(**tables).truth.client
    acting = {"name": "poison", "clients": [1]}
    client = {"preset": "malicious-client"}
    assert 1 not in build(threat_model=client, adversary=acting, game={"members": 60}).truth.client
    with pytest.raises(InputError, match="this client is the adversary's"):
        build(**{**tables, "game": {"clients": [0, 1]}})
    everyone = {"preset": "coalition", "controls": [0, 1, 2, 3, 4]}
    with pytest.raises(InputError, match="nobody to attack"):
        build(threat_model=everyone)

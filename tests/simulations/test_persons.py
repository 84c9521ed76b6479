"""Games about persons: who trains, who is asked about, and with which records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from fl_audit.errors import InputError
from simulations.data import load_dataset
from simulations.population import Population, build_population
from simulations.scenario import Data, parse_scenario
from simulations.truth import candidate_uses

FALSE_FAILURE = 1e-6
USERS = load_dataset(Data(name="personas")).users


def tables(**game: Any) -> dict[str, Any]:
    return {
        "data": {"name": "personas", "examples_per_client": 160},
        "game": {"unit": "user", **game},
    }


def build(seed: int = 0, **game: Any) -> Population:
    return build_population(parse_scenario({"seed": seed, **tables(**game)}))


@pytest.mark.parametrize("others", [1, 2])
def test_fresh_records_are_never_trained_on_and_persons_stay_whole(others: int) -> None:
    population = build(non_members_per_member=others, members=40)
    game, truth = population.game, population.truth
    assert USERS is not None
    assert population.client_users is not None
    assert game.users is not None
    assert game.null_users is not None
    trained = np.concatenate([c.ids for c in population.clients])
    held = [set(users.tolist()) for users in population.client_users]
    assert sum(map(len, held)) == len(set().union(*held))  # each person at one client
    for records in (game.candidates, game.null, game.auxiliary, population.test):
        assert not set(records.ids) & set(trained)
    np.testing.assert_array_equal(game.users, USERS[game.candidates.ids])
    for user, member, client in zip(game.users, truth.is_member, truth.client, strict=True):
        assert (user in held[client]) == member
        assert member or not any(user in who for who in held)
    for others_users in (game.null_users, USERS[game.auxiliary.ids], USERS[population.test.ids]):
        assert not set(others_users) & set().union(*held)
        assert not set(others_users) & set(game.users)


def test_records_in_a_row_hold_one_of_each_person_of_a_group() -> None:
    """So that whoever leaves out whole groups leaves out whole persons."""
    game, truth = build().game, build().truth
    assert game.users is not None
    pairs = game.users.reshape(-1, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert (truth.is_member.reshape(-1, 2).sum(axis=1) == 1).all()
    blocks = game.users.reshape(-1, game.rules.fresh_per_user, 2)
    assert (blocks == blocks[:, :1]).all()
    assert set(np.unique(game.users, return_counts=True)[1]) == {4}


def test_the_coin_is_fair() -> None:
    """Which of a pair trains is no matter of its place: binomial test at level 1e-6."""
    firsts = [build(seed).truth.is_member.reshape(-1, 4, 2)[:, 0, 0] for seed in range(5)]
    found = np.concatenate(firsts)
    assert stats.binomtest(int(found.sum()), len(found)).pvalue > FALSE_FAILURE


def test_a_person_counts_in_rounds_in_which_its_other_records_were_trained_on() -> None:
    """FedSGD takes one batch a round, so most persons are left out of most rounds."""
    scenario = parse_scenario(
        {**tables(members=30), "training": {"algorithm": "fedsgd", "batch_size": 4}}
    )
    population = build_population(scenario)
    uses, game, truth = (
        candidate_uses(scenario, population),
        population.game,
        population.truth,
    )
    assert game.users is not None
    assert not uses[~truth.is_member].any()
    assert 0 < uses.mean() < 0.25
    for user in np.unique(game.users):
        own = uses[game.users == user]
        assert (own == own[0]).all()


def test_all_records_that_the_game_leaves_are_trained_on() -> None:
    scenario = parse_scenario(
        {
            "data": {"name": "personas", "examples_per_client": "all"},
            "game": {"unit": "user", "members": 50},
        }
    )
    population = build_population(scenario)
    assert population.game.rules.groups == population.game.rules.null_groups == 50
    assert population.game.rules.notes == []
    assert population.client_users is not None
    persons = sum(len(set(users.tolist())) for users in population.client_users)
    assert persons == 374 - 3 * 50  # 26 are for tests and the adversary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "digits"}, "game": {"unit": "user"}}, "does not say whose"),
        ({"partition": {"kind": "dirichlet"}, "game": {"unit": "user"}}, "tear persons apart"),
        ({"game": {"unit": "user", "canaries": {"mislabelled": 1}}}, "Choose one of the two"),
        (tables() | {"data": {"name": "personas", "examples_per_client": 4}}, "get no person"),
        (tables() | {"data": {"name": "personas", "test": 9_000}}, "data.test"),
        (tables(fresh_per_user=12), "get no person"),
    ],
)
def test_what_cannot_be_played_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_population(parse_scenario(changes))

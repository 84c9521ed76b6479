"""Members, non-members, null control and auxiliary records never share a record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attacks.split import Split, split_population
from fl_audit.errors import InputError
from fl_audit.records import Records


def records(num: int = 2000, width: int = 1) -> Records:
    inputs = np.arange(num * width, dtype=np.float32).reshape(num, width)
    return Records(np.arange(num), inputs, np.zeros(num, np.int64))


def split(members: Any, non_members: Any = None, auxiliary: Any = None, **options: Any) -> Split:
    return split_population(
        options.pop("population", records()),
        members,
        non_members,
        auxiliary,
        seed=options.pop("seed", 0),
        task=None,
    )


def test_what_is_not_given_is_drawn_from_the_rest() -> None:
    found = split(np.arange(300))
    assert found.is_member.sum() == 300
    assert (~found.is_member).sum() == 300
    num = len(found.is_member)
    assert set(found.pool.ids[:num][found.is_member]) == set(range(300))
    assert len(set(found.pool.ids.tolist())) == len(found.pool) == 2000
    assert len(found.null_is_member) == 120
    assert found.null_is_member.sum() == 60
    assert len(found.pool) - found.num_audited == 2000 - 600 - 120


def test_the_draw_depends_on_the_seed_only() -> None:
    first, again, other = split(range(300)), split(range(300)), split(range(300), seed=1)
    assert first.pool.ids.tolist() == again.pool.ids.tolist()
    assert first.pool.ids.tolist() != other.pool.ids.tolist()


def test_everything_given() -> None:
    found = split([0, 1], [2, 3, 4], list(range(100, 200)))
    assert found.pool.ids[:5].tolist() == [0, 1, 2, 3, 4]
    assert found.pool.ids[-100:].tolist() == list(range(100, 200))


def test_a_second_data_set_leaves_the_rest_to_non_members() -> None:
    second = (np.full((50, 1), 0.5, dtype=np.float32), np.zeros(50, np.int64))
    found = split(range(800), auxiliary=second)
    assert found.notes == []
    assert (~found.is_member).sum() == 800
    assert found.auxiliary_from == "a second data set"
    assert len(found.pool) - found.num_audited == 50
    assert len(set(found.pool.ids.tolist())) == len(found.pool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [2, 3]), r"members, non_members = 2: 1 records stand in both"),
        (([1, 2], [5], [2, 7]), "members, auxiliary = 2"),
        (([1, 2], [5], [5, 7]), "non_members, auxiliary = 5"),
        ((range(2000),), "every record of the population is a member"),
    ],
)
def test_overlaps_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split(*arguments)


def test_a_second_data_set_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"population's shape \(1,\)"):
        split([0, 1], [2, 3], records(20, width=3))


@pytest.mark.parametrize("row", [3, 900])  # a member, and one drawn as non-member or null
def test_a_second_data_set_with_audited_records_is_refused(row: int) -> None:
    inputs = np.full((50, 1), 0.5, dtype=np.float32)
    inputs[7:9] = row
    labels = np.zeros(50, np.int64)
    population = records(1000)
    with pytest.raises(InputError, match=rf"auxiliary = {row}: 2 of its records are audited"):
        split(range(500), list(range(500, 1000)), (inputs, labels), population=population)
    labels[:] = 1  # another label: another record
    split(range(500), list(range(500, 1000)), (inputs, labels), population=population)


def test_copies_across_parts_are_counted() -> None:
    population = records(1000)
    inputs = population.inputs.copy()
    inputs[[1, 600, 601]] = -1  # a member and two non-members
    inputs[[700, 701]] = -2  # both in one part: nobody is led astray
    inputs[2], inputs[800] = 0.0, -0.0  # record 0 is a member, too
    changed = Records(population.ids, inputs, population.labels)
    found = split(range(500), list(range(500, 1000)), population=changed)
    assert found.notes[-1].startswith("6 records have a copy (same input and label) in another")

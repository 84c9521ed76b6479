"""From clients' values to one score per candidate."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.federated.answers import answer, average
from attacks.federated.rounds import SUM
from fl_audit.errors import InputError

VALUES = np.array([[1.0, 5.0, 3.0], [4.0, 2.0, 6.0]])


def test_without_a_question_the_largest_counts() -> None:
    np.testing.assert_array_equal(answer((0, 7), VALUES, None), [4, 5, 6])


def test_a_question_picks_the_clients_own_value() -> None:
    np.testing.assert_array_equal(answer((0, 7), VALUES, np.array([0, 7, 0])), [1, 2, 3])


def test_a_client_that_was_never_seen_speaks_neither_way() -> None:
    np.testing.assert_array_equal(answer((0, 7), VALUES, np.array([0, 7, 5])), [1, 2, 1.5])


def test_a_sum_has_one_answer_for_all() -> None:
    np.testing.assert_array_equal(answer((SUM,), VALUES[:1], np.array([3, 3, 3])), VALUES[0])


def test_a_question_for_each_candidate() -> None:
    with pytest.raises(InputError, match="one client per candidate"):
        answer((0, 7), VALUES, np.array([0]))


def test_averages_are_over_the_rounds_a_client_took_part_in() -> None:
    found = average([(1, (0, 7), VALUES), (2, (7,), VALUES[:1])])
    assert found.clients == (0, 7)
    np.testing.assert_array_equal(found.means, [VALUES[0], (VALUES[1] + VALUES[0]) / 2])
    assert sorted(found.per_round) == [1, 2]


def test_nothing_is_no_signal_not_chance() -> None:
    with pytest.raises(InputError, match="no signal"):
        average([])

"""Pooled searches: paired up, averaged, and sure where they agree."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.reconstruction.pooling import Values, pool, row_distance
from attacks.reconstruction.tables import NUMBER_TOLERANCE, TableLayout, infer_layout
from fl_audit.errors import InputError
from tests.table_federation import GROUPS, rows

SEED = 20_261_125
BATCH = 6


def _table() -> tuple[TableLayout, Values]:
    inputs = rows()[0].astype(np.float64)
    return infer_layout(inputs[:200]), inputs[200 : 200 + BATCH]


def test_searches_in_any_order_are_paired_up() -> None:
    layout, truth = _table()
    rng = np.random.default_rng(SEED)
    shuffled = np.stack([truth, *(truth[rng.permutation(BATCH)] for _ in range(4))])
    found = pool(shuffled, np.ones(5), layout, labels=None, within=2)
    np.testing.assert_array_equal(found.rows, truth)
    np.testing.assert_array_equal(found.confidence, 1.0)
    assert found.num_pooled == 5


def test_only_rows_of_one_class_are_paired_up() -> None:
    """The second search has two rows the wrong way round; their labels forbid to turn them."""
    layout, truth = _table()
    searches = np.stack([truth[:2], truth[1::-1]])
    own = pool(searches, np.ones(2), layout, labels=np.array([0, 1]), within=2)
    np.testing.assert_allclose(own.rows, searches.mean(0))
    free = pool(searches, np.ones(2), layout, labels=np.array([1, 1]), within=2)
    np.testing.assert_array_equal(free.rows, truth[:2])


def test_numbers_are_medians_and_categories_mean_probabilities() -> None:
    layout, truth = _table()
    searches = np.repeat(truth[None, :1], 3, axis=0)
    searches[2, 0, 0] += 100.0  # one search is far off: a median does not mind
    searches[2, 0, GROUPS[2]] = searches[2, 0, GROUPS[2][::-1]]
    found = pool(searches, np.ones(3), layout, labels=None, within=2)
    np.testing.assert_array_equal(found.rows[:, :3], truth[:1, :3])
    np.testing.assert_allclose(np.sort(found.rows[0, GROUPS[2]]), [1 / 3, 2 / 3])


def test_searches_far_from_the_best_objective_count_for_confidence_only() -> None:
    layout, truth = _table()
    other = truth.copy()
    other[:, 0] += layout.spread[0]
    found = pool(
        np.stack([truth, other]), np.array([0.1, 0.3]), layout, labels=np.arange(BATCH), within=2
    )
    np.testing.assert_array_equal(found.rows, truth)
    assert found.num_pooled == 1
    np.testing.assert_allclose(found.confidence[:, 0], np.exp(-(0.5**0.5) / NUMBER_TOLERANCE))
    np.testing.assert_array_equal(found.confidence[:, 1:], 1.0)


def test_confidence_is_one_less_the_share_of_entropy() -> None:
    layout, truth = _table()
    searches = np.repeat(truth[None, :1], 2, axis=0)
    searches[:, 0, GROUPS[0]] = [0.5, 0.5, 0, 0]
    searches[:, 0, GROUPS[1]] = 1 / 3
    found = pool(searches, np.ones(2), layout, labels=None, within=2)
    np.testing.assert_allclose(found.confidence[0, GROUPS[0]], 0.5)  # 1 of 2 bits
    np.testing.assert_allclose(found.confidence[0, GROUPS[1]], 0.0, atol=1e-12)
    np.testing.assert_array_equal(found.confidence[0, GROUPS[2]], 1.0)


def test_searches_that_broke_off_are_left_out_and_one_is_not_enough() -> None:
    layout, truth = _table()
    searches = np.stack([truth, truth, np.full_like(truth, np.nan)])
    found = pool(searches, np.array([1, 1, np.inf]), layout, labels=None, within=1e9)
    np.testing.assert_array_equal(found.rows, truth)
    with pytest.raises(InputError, match="compares two searches"):
        pool(searches, np.array([1, np.nan, np.inf]), layout, labels=None, within=2)


def test_no_number_outweighs_a_category() -> None:
    layout, truth = _table()
    other = truth[:1].copy()
    other[:, 0] += 1e6
    assert row_distance(truth[:1], other, layout)[0, 0] == pytest.approx(1 / 6)
    other = truth[:1].copy()
    other[:, GROUPS[1]] = np.roll(other[:, GROUPS[1]], 1)
    assert row_distance(truth[:1], other, layout)[0, 0] == pytest.approx(1 / 6)

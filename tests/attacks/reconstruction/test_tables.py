"""Layout of encoded tables: told from rows, decoded, and snapped to what a table can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attacks.reconstruction.tables import NUMBER_TOLERANCE, infer_layout, plain_layout
from fl_audit.errors import InputError
from tests.table_federation import AGES, GROUPS, rows

SEED = 20_261_125


def test_the_layout_is_told_from_rows() -> None:
    layout = infer_layout(rows()[0][:100])
    assert [list(group) for group in layout.groups] == GROUPS
    assert layout.numeric.tolist() == [0, 1, 2]
    assert layout.num_columns == 12
    np.testing.assert_allclose(layout.first[0], AGES[0])
    np.testing.assert_allclose(layout.step, [AGES[1], 0, 0])
    np.testing.assert_allclose(layout.spread, rows()[0][:100, :3].std(0), rtol=1e-5)


def test_flags_constants_and_unseen_categories() -> None:
    """A flag is no category, nor is a constant; columns of zeros go to the run they stand before,
    or at the end to the last."""
    rng = np.random.default_rng(SEED)
    flag = rng.integers(2, size=(50, 1))
    flag[:2] = [[0], [1]]
    pair = np.eye(2)[rng.integers(2, size=50)]
    zero, one = np.zeros((50, 1)), np.ones((50, 1))
    triple = np.eye(3)[rng.integers(3, size=50)]
    table = np.hstack([flag, pair, zero, triple, one, pair[::-1], zero])
    layout = infer_layout(table)
    assert layout.groups == ((1, 2), (3, 4, 5, 6), (8, 9, 10))
    assert layout.numeric.tolist() == [0, 7]
    assert (layout.low[0], layout.high[0], layout.step[0]) == (0, 1, 1)
    assert np.isinf(layout.low[1])  # one value tells no range
    assert layout.spread[1] == 1


def test_flags_that_are_often_both_on_are_no_category() -> None:
    """Three flags of which one is always on, and now and then a second."""
    flags = np.eye(3)[np.arange(30) % 3]
    assert infer_layout(flags).groups == ((0, 1, 2),)
    flags[0] = [1, 1, 0]
    assert infer_layout(flags).groups == ()


def test_few_numbers_make_no_grid() -> None:
    """Three numbers are evenly spaced by chance; eight are not."""
    three = np.tile([[0.0], [1.0], [3.0]], (10, 1))
    assert infer_layout(three).step[0] == 0
    eight = np.array([[0.0], [1], [3], [4], [7], [8], [9], [12]])
    assert infer_layout(eight).step[0] == 1
    assert infer_layout(eight + 0.01 * np.arange(8)[:, None] ** 2).step[0] == 0


def test_decoding_is_a_softmax_in_each_category_and_nothing_on_numbers() -> None:
    layout = plain_layout([[4, 1], [2, 3]], 6)
    searched = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(SEED))
    found = layout.decode(searched)
    np.testing.assert_array_equal(found[..., [0, 5]], searched[..., [0, 5]])
    for group in layout.groups:
        part = searched[..., list(group)].exp()
        expected = part / part.sum(-1, keepdim=True)
        np.testing.assert_allclose(found[..., list(group)], expected, rtol=1e-6)


def test_real_rows_are_left_as_they_are() -> None:
    table = rows()[0].astype(np.float64)
    layout = infer_layout(table[:100])
    inside = np.all((table[:, :3] > layout.low) & (table[:, :3] < layout.high), axis=1)
    assert inside.mean() > 0.98
    np.testing.assert_allclose(layout.snap(table[inside], to_grid=True), table[inside], atol=1e-6)
    assert layout.right(table, table).all()


def test_snapping_takes_the_likeliest_category_and_the_nearest_number() -> None:
    layout = infer_layout(rows()[0])
    mixed = np.array([0.1, 99.0, 0.3, 0.2, 0.3, 0.4, 0.1, 0.5, 0.2, 0.3, 0.4, 0.6])
    found = layout.snap(mixed, to_grid=True)
    np.testing.assert_array_equal(found[3:], [0, 0, 1, 0, 1, 0, 0, 0, 1])
    np.testing.assert_allclose(found[:3], [0.0, layout.high[1], 0.3], atol=1e-6)
    assert layout.snap(mixed, to_grid=False)[0] == 0.1


def test_right_counts_categories_and_numbers_within_the_tolerance() -> None:
    layout = infer_layout(rows()[0])
    truth = rows()[0][0].astype(np.float64)
    near, far = truth.copy(), truth.copy()
    near[1] += 0.99 * NUMBER_TOLERANCE * layout.spread[1]
    far[1] += 1.01 * NUMBER_TOLERANCE * layout.spread[1]
    far[3:7] = np.roll(truth[3:7], 1)
    assert layout.right(near, truth).all()
    np.testing.assert_array_equal(layout.right(far, truth), [True, False, True, False, True, True])


@pytest.mark.parametrize(
    ("table", "groups", "message"),
    [
        (np.zeros((0, 3)), None, "at least one row"),
        (np.zeros((5, 3, 3)), None, "rows and columns"),
        (np.full((5, 3), np.nan), None, "finite"),
        (np.zeros((5, 3)), [[0]], "two columns or more"),
        (np.zeros((5, 3)), [[0, 3]], "0 to 2"),
        (np.zeros((5, 3)), [[0, 1], [1, 2]], "none of them twice"),
    ],
)
def test_what_is_no_table_is_refused(table: Any, groups: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        infer_layout(table, groups)

"""Halves of one draw: every audited record is in exactly half of the models."""

from __future__ import annotations

import pytest

from attacks.shadows.assignment import pair_masks


@pytest.mark.parametrize(("audited", "auxiliary", "size"), [(10, 0, 5), (11, 7, 9), (7, 100, 3)])
def test_online_every_audited_record_is_in_one_of_each_pair(
    audited: int, auxiliary: int, size: int
) -> None:
    for pair in range(4):
        masks = pair_masks(audited, auxiliary, mode="online", train_size=size, seed=0, pair=pair)
        assert (masks[:, :audited].sum(axis=0) == 1).all()
        assert not (masks[0] & masks[1]).any()
        assert abs(int(masks[0].sum()) - int(masks[1].sum())) <= 1
        drawn = max(audited, min(2 * size, audited + auxiliary))
        assert masks.sum() == drawn


def test_odd_draws_give_the_larger_half_in_turn() -> None:
    sizes = [
        pair_masks(11, 0, mode="online", train_size=5, seed=0, pair=p)[0].sum() for p in (0, 1)
    ]
    assert sizes == [5, 6]


def test_offline_no_audited_record_is_trained_on() -> None:
    masks = pair_masks(10, 40, mode="offline", train_size=15, seed=0, pair=0)
    assert not masks[:, :10].any()
    assert masks[0].sum() == masks[1].sum() == 15


def test_pairs_differ_and_repeat_by_seed() -> None:
    def draw(seed: int, pair: int) -> bytes:
        return pair_masks(50, 0, mode="online", train_size=25, seed=seed, pair=pair).tobytes()

    assert draw(0, 0) == draw(0, 0)
    assert len({draw(0, 0), draw(0, 1), draw(1, 0)}) == 3

"""Metrics of reconstructions against values worked out by hand or by another formula."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from attacks.reconstruction.metrics import (
    PSNR_CAP,
    column_tolerance,
    gallery_ranks,
    largest_errors,
    pair,
    psnr,
    right_cells,
    right_tokens,
    rouge,
    set_scores,
    ssim,
    ssim_sigma,
)
from fl_audit.errors import InputError

RNG = np.random.default_rng(20_261_125)


@pytest.mark.parametrize(("error", "decibel"), [(0.1, 20), (0.01, 40), (1.0, 0), (0.5, 6.0206)])
def test_psnr_by_hand(error: float, decibel: float) -> None:
    assert psnr(np.full(4, 0.2 + error), np.full(4, 0.2)) == pytest.approx(decibel, abs=1e-4)


def test_psnr_is_capped_and_takes_float32() -> None:
    assert psnr(np.zeros(4), np.zeros(4)) == PSNR_CAP
    assert psnr(np.full(4, 1e-9), np.zeros(4)) == PSNR_CAP
    one = RNG.random(9).astype(np.float32)
    assert psnr(one, one.astype(np.float64)) == PSNR_CAP


def gaussian_ssim(one: np.ndarray, other: np.ndarray, reach: int, sigma: float) -> float:
    """Wang et al.'s definition, a window around each pixel of the mirrored picture."""
    one, other = (np.pad(picture, reach, mode="reflect") for picture in (one, other))
    steps = np.arange(-reach, reach + 1)
    line = np.exp(-(steps**2) / (2 * sigma**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2, values = 0.01**2, 0.03**2, []
    size = 2 * reach + 1
    for top, left in itertools.product(*(range(n - size + 1) for n in one.shape)):
        a, b = (x[top : top + size, left : left + size] for x in (one, other))
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
        cov = (window * a * b).sum() - mean_a * mean_b
        above = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
        values.append(above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize(("side", "reach"), [(16, 5), (11, 5), (8, 3), (3, 1)])
def test_ssim_agrees_with_its_definition_whatever_the_size(side: int, reach: int) -> None:
    one, other = RNG.random((2, 3, 1, side, side))
    sigma = ssim_sigma(side, side)
    assert sigma is not None
    wanted = [gaussian_ssim(a[0], b[0], reach, sigma) for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(ssim(one, other), wanted, atol=1e-9)
    np.testing.assert_allclose(ssim(one, one), 1)


def test_ssim_refuses_what_is_no_picture() -> None:
    assert ssim_sigma(32, 32) == 1.5
    assert ssim_sigma(2, 9) is None
    for shape in ((2, 5), (2, 1, 2, 9)):
        with pytest.raises(InputError, match="SSIM compares pictures"):
            ssim(np.zeros(shape), np.zeros(shape))
    with pytest.raises(InputError, match="SSIM"):
        ssim(np.zeros((1, 1, 8, 8)), np.zeros((2, 1, 8, 8)))


@pytest.mark.parametrize("num", [3, 5, 8])
def test_pairs_are_the_cheapest_of_all(num: int) -> None:
    """Also with fewer, or more, reconstructions than originals."""
    originals = RNG.random((5, 2, 2))
    found = RNG.random((num, 2, 2))
    rows, columns = pair(found, originals)
    assert len(rows) == len(set(columns.tolist())) == min(num, 5)
    assert (np.diff(rows) > 0).all()
    cost = ((found[:, None] - originals[None]) ** 2).sum((2, 3))
    small, large = (cost, cost.T) if num <= 5 else (cost.T, cost)
    small = small if small.shape[0] <= small.shape[1] else small.T
    best = min(
        sum(small[i, p] for i, p in enumerate(order))
        for order in itertools.permutations(range(small.shape[1]), small.shape[0])
    )
    assert cost[rows, columns].sum() == pytest.approx(best)
    assert large.size == small.size


def test_pairs_by_position_do_not_care_how_far_tokens_are_apart() -> None:
    originals = np.array([[1.0, 2, 3], [1000, 5, 9]])
    found = np.array([[900.0, 2, 3]])
    assert pair(found, originals, by_position=True)[1].tolist() == [0]  # two of three agree
    assert pair(found, originals)[1].tolist() == [1]


def test_pairing_takes_no_memory_for_every_pixel_of_every_pair() -> None:
    """400 x 400 records of 3,072 values: 4 GB if all differences were kept."""
    originals = RNG.random((400, 3, 32, 32))
    order = RNG.permutation(400)
    assert (pair(originals[order], originals)[1] == order).all()


def test_bad_reconstructions_are_refused() -> None:
    with pytest.raises(InputError, match="a record of this client has shape"):
        pair(np.zeros((2, 3)), np.zeros((2, 4)))
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match="must be finite"):
            pair(np.full((1, 2), bad), np.zeros((1, 2)))


def test_largest_errors_by_hand() -> None:
    found, original = np.array([[[0.0, 1]], [[2, 3]]]), np.array([[[0.0, 0.5]], [[2, 5]]])
    assert largest_errors(found, original).tolist() == [0.5, 2]
    assert largest_errors(np.empty((0, 1, 2)), np.empty((0, 1, 2))).tolist() == []


@pytest.mark.parametrize(
    ("found", "original", "size", "value"),
    [
        # 3 shared of 4 and 5 tokens: 2 * 3 / 9; runs of two: (1,2) of 3 and 4
        ([1, 2, 4, 3], [1, 2, 3, 9, 8], 1, 6 / 9),
        ([1, 2, 4, 3], [1, 2, 3, 9, 8], 2, 2 / 7),
        # a token three times in one and once in the other is shared once
        ([7, 7, 7], [7, 5, 6], 1, 2 / 6),
        ([7, 7, 7], [7, 7, 5], 2, 2 / 4),
        # padding is no token
        ([5, 6, 0, 0], [5, 6, 7, 0], 1, 4 / 5),
        ([0, 0], [5, 6], 1, 0),
        ([1, 2, 3], [1, 2, 3], 2, 1),
        ([1, 2], [3, 4], 1, 0),
        # too short for a run: the whole text is compared
        ([4, 0], [4, 0], 2, 1),
        ([4, 0], [5, 0], 2, 0),
        ([0, 0], [0, 0], 1, 1),
    ],
)
def test_rouge_by_hand(found: list[int], original: list[int], size: int, value: float) -> None:
    assert rouge(found, original, size=size) == pytest.approx(value)
    assert rouge(original, found, size=size) == pytest.approx(value)  # F1 has no direction


def test_tokens_count_where_they_stand() -> None:
    original = np.array([5, 6, 7, 0])
    assert right_tokens(np.array([5, 7, 7, 9]), original) == pytest.approx(2 / 3)
    assert right_tokens(np.array([6, 7, 0, 5]), original) == 0
    padding = np.zeros(3, dtype=np.int64)
    assert right_tokens(padding, padding) == 1
    assert right_tokens(padding + 1, padding) == 0


def test_token_sets_by_hand() -> None:
    true = np.array([[1, 2, 2, 0], [3, 4, 1, 0]])
    assert set_scores(np.array([1, 2, 9]), true) == (2 / 3, 2 / 4)
    assert set_scores(np.array([], dtype=np.int64), true) == (0, 0)
    assert set_scores(np.array([0, 1]), true) == (1, 1 / 4)


def test_cells_are_right_within_the_tolerance_of_their_column() -> None:
    known = np.array([[0.0, 2, 0.5], [1, 4, 2.5]])  # flags, counts, measures of deviation 1
    assert column_tolerance(known).tolist() == [0.5, 0.5, pytest.approx(0.1)]
    found = np.array([[0.4, 2.6, 0.59], [0.5, 4.49, 2.7]])
    right = right_cells(found, known, column_tolerance(known))
    assert right.tolist() == [[True, False, True], [False, True, False]]


def test_ranks_count_nearer_records_and_share_ties() -> None:
    gallery = np.array([[0.0], [1], [2], [3], [-1]])
    ranks, first = gallery_ranks(np.array([[0.1], [0.1], [9.0]]), gallery[[0, 3, 3]], gallery)
    assert ranks.tolist() == [1, 5, 1]  # 3 lies behind 0, 1, -1 and 2
    assert first.tolist() == [1, 0, 1]
    # between -1 and 1, both are as near: the one that is meant is the first half of the time
    ranks, first = gallery_ranks(np.array([[0.0]]), np.array([[1.0]]), gallery[1:])
    assert (ranks[0], first[0]) == (1.5, 0.5)


def test_the_original_itself_in_the_gallery_is_no_rival() -> None:
    gallery = np.zeros((4, 3))
    ranks, first = gallery_ranks(np.ones((1, 3)), np.zeros((1, 3)), gallery)
    assert (ranks[0], first[0]) == (1, 1)


def test_a_constant_guess_identifies_nobody_in_particular() -> None:
    """Every record is meant once, so ranks of one guess are 1, ..., n and one is first."""
    gallery = RNG.random((50, 4))
    ranks, first = gallery_ranks(np.repeat(gallery.mean(0)[None], 50, axis=0), gallery, gallery)
    assert sorted(ranks) == list(range(1, 51))
    assert first.sum() == 1


def test_ranks_of_sequences_go_by_position() -> None:
    gallery = np.array([[1, 2, 3], [1, 2, 900], [800, 2, 3]])
    ranks, _ = gallery_ranks(gallery[[1]], gallery[[1]], gallery, by_position=True)
    assert ranks.tolist() == [1]
    ranks, first = gallery_ranks(
        np.array([[1, 2, 4]]), np.array([[1, 2, 900]]), gallery, by_position=True
    )
    assert (ranks[0], first[0]) == (1.5, 0.5)  # as near to (1, 2, 3): one position differs

"""How near reconstructions come to the originals: pure functions on arrays, in float64.

Pictures and numbers: PSNR, SSIM, largest error. Rows of a table: cells. Sequences: tokens and
ROUGE. All of them: the rank of the true original in a gallery. Reconstructions come in no order, so
they are first paired with originals (`pair`).

References:
    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE
    TIP 2004. https://doi.org/10.1109/TIP.2003.819861
    Lin, "ROUGE: a package for automatic evaluation of summaries", 2004.
    https://aclanthology.org/W04-1013
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from fl_audit.errors import InputError

Values = NDArray[np.float64]
PSNR_CAP = 150.0  # dB: two float64 images that differ by rounding would give any number
EXACT = 1e-6  # largest error of a reconstruction that is called exact
EXACT_8BIT = 1 / 510  # likewise where 255 levels of [0, 1] are stored: half a level
PADDING = 0  # the token that fills short sequences: no part of the text
CELL_TOLERANCE = 0.1  # standard deviations of a column that a value of it may be off
_SIGMA, _MOST_REACH = 1.5, 5  # SSIM's usual Gaussian window: 11 pixels wide
_REACH_PER_SIGMA = 3.5  # of that window, in torchmetrics


def psnr(reconstruction: Values, original: Values) -> float:
    """Peak signal-to-noise ratio in dB of arrays in [0, 1], capped at 150 dB. Higher = nearer."""
    difference = np.asarray(reconstruction, np.float64) - np.asarray(original, np.float64)
    error = float(np.mean(difference**2))
    return PSNR_CAP if error == 0 else min(PSNR_CAP, -10 * float(np.log10(error)))


def ssim_sigma(height: int, width: int) -> float | None:
    """Width of SSIM's Gaussian window: 1.5 pixels, less where the picture is too small for it.

    Returns:
        None if no window of three pixels fits.
    """
    reach = min(_MOST_REACH, (min(height, width) - 1) // 2)
    if reach < 1:
        return None
    return _SIGMA if reach == _MOST_REACH else reach / _REACH_PER_SIGMA


def ssim(reconstructions: Values, originals: Values) -> Values:
    """Structural similarity of pictures in [0, 1], at most 1 = the same. Higher = nearer.

    The mean over windows around every pixel; pictures are mirrored at their edges.

    Args:
        reconstructions: Shape (n, channels, height, width).
        originals: The same shape.

    Returns:
        Shape (n,).

    Raises:
        InputError: If they are no pictures, or too small for a window.
    """
    sigma = ssim_sigma(*originals.shape[2:]) if originals.ndim == 4 else None
    if sigma is None or reconstructions.shape != originals.shape:
        raise InputError(
            "pictures",
            (reconstructions.shape, originals.shape),
            "SSIM compares pictures (n, channels, height, width) of at least 3 x 3 pixels",
            "Use another measure.",
        )
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(
        torch.from_numpy(np.ascontiguousarray(reconstructions, dtype=np.float64)),
        torch.from_numpy(np.ascontiguousarray(originals, dtype=np.float64)),
        sigma=sigma,
        reduction="none",
        data_range=1.0,
    )
    assert isinstance(found, torch.Tensor)  # a tuple only if more is asked for
    result: Values = found.reshape(-1).numpy().astype(np.float64)
    return result


def largest_errors(reconstructions: Values, originals: Values) -> Values:
    """Largest absolute error of any value, shape (n,), in the inputs' units."""
    size = int(np.prod(originals.shape[1:]))  # no -1: there may be no pair
    off: Values = np.abs(reconstructions - originals).reshape(-1, size).max(axis=1)
    return off


def pair(
    reconstructions: Values, originals: Values, *, by_position: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair reconstructions with originals so that the total distance is least.

    Takes memory for one number a pair, whatever the size of a record. The pairing sees the truth:
    it is a part of the scoring, and guesses are paired the same way.

    Args:
        reconstructions: Shape (a, ...).
        originals: Shape (b, ...); a and b may differ, and min(a, b) pairs are found.
        by_position: Distance is the share of positions that differ, not the squared error.

    Returns:
        Rows of the reconstructions, ascending, and of the originals that belong to them.

    Raises:
        InputError: If shapes of records differ, or a reconstruction is not finite.
    """
    if reconstructions.shape[1:] != originals.shape[1:]:
        raise InputError(
            "reconstruction",
            reconstructions.shape,
            f"a record of this client has shape {originals.shape[1:]}",
            "An attack gives records in the shape of the model's inputs.",
        )
    if not np.isfinite(reconstructions).all():
        raise InputError(
            "reconstruction", "NaN or infinity", "must be finite", "Make no claim instead."
        )
    size = int(np.prod(originals.shape[1:]))
    distances = cdist(
        reconstructions.reshape(-1, size),
        originals.reshape(-1, size),
        metric="hamming" if by_position else "sqeuclidean",
    )
    rows, columns = linear_sum_assignment(distances)
    return rows.astype(np.int64), columns.astype(np.int64)


def rouge(found: Sequence[int], original: Sequence[int], *, size: int) -> float:
    """ROUGE-N: F1 of the runs of `size` tokens that two sequences share, in [0, 1].

    Runs count as often as they occur in both. Padding is left out first. A text too short for one
    run is compared whole: 1 if the two are the same, else 0.
    """
    own, true = (_runs([t for t in tokens if t != PADDING], size) for tokens in (found, original))
    if not own or not true:
        return float(_text(found) == _text(original))
    shared = sum((own & true).values())
    return 2 * shared / (sum(own.values()) + sum(true.values()))


def right_tokens(found: NDArray[np.int64], original: NDArray[np.int64]) -> float:
    """Share of an original's tokens, padding not counted, that stand in their place.

    1 for an original of padding alone if the reconstruction is the same, else 0.
    """
    counted = original != PADDING
    if not counted.any():
        return float(bool((found == original).all()))
    return float((found[counted] == original[counted]).mean())


def right_cells(found: Values, original: Values, spread: Values) -> NDArray[np.bool_]:
    """Which cells of paired rows are right: within the tolerance of their column.

    Args:
        found: Shape (n, columns).
        original: Shape (n, columns).
        spread: As `column_tolerance` gives it, shape (columns,).
    """
    right: NDArray[np.bool_] = np.abs(found - original) < spread
    return right


def column_tolerance(records: Values) -> Values:
    """How far off a value of each column may be, shape (columns,).

    A column of whole numbers (categories, counts, flags): less than 0.5, so that it rounds to the
    right one. Any other: a tenth of its standard deviation.

    Args:
        records: Rows of the same table, shape (n, columns).
    """
    is_whole = (records == np.round(records)).all(axis=0)
    tolerance: Values = np.where(is_whole, 0.5, CELL_TOLERANCE * records.std(axis=0))
    return tolerance


def gallery_ranks(
    reconstructions: Values, originals: Values, gallery: Values, *, by_position: bool = False
) -> tuple[Values, Values]:
    """Where the true original stands if a gallery is sorted by distance to the reconstruction.

    Records of the gallery that equal the true original are that original, and not counted. Ties
    are broken by lot, in expectation.

    Args:
        reconstructions: Shape (n, ...).
        originals: The true originals, shape (n, ...).
        gallery: Other records, shape (g, ...).
        by_position: As in `pair`.

    Returns:
        Expected rank from 1 = nearest (lower = re-identified), and the probability of rank 1; both
        of shape (n,).
    """
    size = int(np.prod(gallery.shape[1:]))
    found, true, others = (
        a.reshape(-1, size).astype(np.float64) for a in (reconstructions, originals, gallery)
    )
    metric = "hamming" if by_position else "sqeuclidean"
    ranks, first = np.empty(len(found)), np.empty(len(found))
    alike: dict[bytes, list[int]] = {}
    for number, row in enumerate(found):  # a guess is the same for all records
        alike.setdefault(row.tobytes(), []).append(number)
    for numbers in alike.values():
        row = found[numbers[:1]]
        to_others = cdist(row, others, metric)[0]
        for number in numbers:
            own = float(cdist(row, true[[number]], metric)[0, 0])
            tied = np.flatnonzero(to_others == own)
            num_tied = int((others[tied] != true[number]).any(axis=1).sum())
            nearer = int((to_others < own).sum())
            ranks[number] = 1 + nearer + num_tied / 2
            first[number] = 0 if nearer else 1 / (1 + num_tied)
    return ranks, first


def set_scores(found: NDArray[np.int64], true: NDArray[np.int64]) -> tuple[float, float]:
    """Precision and recall of a set of tokens, in [0, 1]; padding is left out of both."""
    own, real = (set(np.unique(tokens).tolist()) - {PADDING} for tokens in (found, true))
    shared = len(own & real)
    return shared / len(own) if own else 0.0, shared / len(real) if real else 1.0


def _runs(tokens: Sequence[int], size: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))


def _text(tokens: Sequence[int]) -> list[int]:
    return [int(token) for token in tokens if token != PADDING]

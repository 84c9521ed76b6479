"""Class shares from a bias gradient, and the batch size that makes whole numbers of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fl_audit.errors import InputError

Values = NDArray[np.float64]
_SUM_WEIGHT = 1e3  # how strongly the shares are held to sum to 1
_MOST = 256  # largest batch that is told from its shares
_DEVIATIONS = 4.0  # standard deviations that a count may be off a whole number
_ROUNDING = 1e-4  # error of a share that float32 leaves
_CHANCE = 0.01  # that shares of no meaning fit a batch size all the same


def class_shares(
    bias_grad: Values, softmax_by_class: Values, input_by_class: Values | None = None
) -> Values:
    """Class shares s >= 0, sum 1, that best explain g = (Mᵀ - diag(d)) s in least squares.

    Args:
        bias_grad: g, shape (classes,).
        softmax_by_class: M, row k = mean softmax of records of class k, shape (classes, classes).
        input_by_class: d, mean input of the "bias" over records of each class, shape (classes,);
            1 by default, as it is for a bias.
    """
    classes = len(bias_grad)
    own = np.eye(classes) if input_by_class is None else np.diag(input_by_class)
    system = np.vstack([softmax_by_class.T - own, np.full(classes, _SUM_WEIGHT)])
    shares, _ = nnls(system, np.append(bias_grad, _SUM_WEIGHT))
    result: Values = shares
    return result


def mean_by_class(probabilities: Values, labels: NDArray[np.int64] | None, classes: int) -> Values:
    """M, shape (classes, classes); a class without proxies takes the mean over all proxies."""
    rows = np.repeat(probabilities.mean(axis=0)[None], classes, axis=0)
    for label in range(classes):
        if labels is not None and (labels == label).any():
            rows[label] = probabilities[labels == label].mean(axis=0)
    return rows


def last_bias(gradients: Mapping[str, Values]) -> str:
    """Name of the last layer's bias, where nothing but arrays in the model's order is known.

    Raises:
        InputError: If the last parameter is none.
    """
    names = list(gradients)
    if not names or not names[-1].endswith("bias") or gradients[names[-1]].ndim != 1:
        raise InputError(
            "model",
            names[-1:],
            "its last parameter is not the bias of a dense layer",
            "Label counts are read from the last layer's bias gradient.",
        )
    return names[-1]


def likely_batch_size(shares: Values, spread: Values, num_proxies: int) -> int:
    """The smallest batch size at which all counts are whole numbers.

    Args:
        shares: Class shares, shape (classes,).
        spread: Standard deviation of the softmax between records, shape (classes,): what a count
            may be off is that of a mean over the batch and of one over the proxies.

    Raises:
        InputError: If none fits, or the softmax varies so much that one would fit by chance.
    """
    by_chance = 0.0
    for size in range(1, _MOST + 1):
        noise = spread * np.sqrt(1 / size + 1 / num_proxies)
        allowed = size * (_DEVIATIONS * noise + _ROUNDING)
        by_chance += float(np.prod(np.sort(np.minimum(1.0, 2 * allowed))[1:]))  # one follows
        if by_chance > _CHANCE:
            break
        exact = shares * size
        if (np.abs(exact - np.round(exact)) <= allowed).all():
            return size
    raise InputError(
        "batch_size",
        None,
        "is not known, and the class shares do not tell it: the softmax varies too much between "
        f"records, or it is above {_MOST}",
        "Give the size of the client's batch.",
    )

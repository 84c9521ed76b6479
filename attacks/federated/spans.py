"""The span of the inputs behind a dense layer's update, and how far a record lies outside it.

The gradient of a dense layer z = W x + b is a sum of outer products (dL/dz) [x; 1]ᵀ, so whatever
number of local SGD steps, batches and epochs went by, the rows of the update [ΔW, Δb] lie in the
span of the inputs [x; 1].

Rounding of float32 weights adds noise to the update, so singular values below the largest that
such noise can have are cut. Where no singular value falls below it (noise was added, or the
examples fill the space), the cut is the one that is best for unknown Gaussian noise.

References:
    Gavish, Donoho, "The optimal hard threshold for singular values is 4/sqrt(3)", IEEE Trans. Inf.
    Theory 2014, eq. (11) approximated. https://arxiv.org/abs/1305.5870
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError

Values = NDArray[np.float64]
ROUNDING_STEPS = 1000  # float32 steps whose rounding errors, adding up as noise, stay below the cut


@dataclass(frozen=True, slots=True, eq=False)
class RowSpace:
    """The span of the inputs behind an update.

    Attributes:
        basis: Orthonormal columns, shape (inputs + 1, rank); the last row belongs to the bias.
        has_gap: Some singular values were at the level of rounding, so the rank is that of the
            client's data. False: the rank is an estimate under noise.
    """

    basis: Values
    has_gap: bool

    @property
    def rank(self) -> int:
        """Dimensions of the span; 0 means that nothing but rounding is in the update."""
        return int(self.basis.shape[1])

    @property
    def slack(self) -> int:
        """Dimensions outside the span: 0 means that every record lies in it."""
        return int(self.basis.shape[0] - self.basis.shape[1])


def row_space(weight_update: Values, bias_update: Values | None, weight: NDArray[Any]) -> RowSpace:
    """Span of the inputs that a dense layer's update was made from.

    Args:
        weight_update: Client minus global weight, shape (out, in).
        bias_update: Client minus global bias, shape (out,), or None.
        weight: The global weight, shape (out, in); its size and dtype set the rounding level.

    Raises:
        InputError: If the update is zero.
    """
    return span_of(with_bias(weight_update, bias_update), rounding_level(weight))


def span_of(matrix: Values, level: float) -> RowSpace:
    """Span of the rows of [ΔW, Δb].

    Args:
        matrix: Shape (out, in + 1).
        level: Standard deviation that rounding can give each entry.

    Raises:
        InputError: If the matrix is zero.
    """
    if not matrix.any():
        raise InputError(
            "update", "all zeros", "the layer was not trained", "Leave this update out."
        )
    # inputs that are always zero (blank pixels); decay that was taken out leaves rounding there
    live = np.sqrt(np.mean(np.square(matrix), axis=0)) > level
    matrix = np.where(live, matrix, 0.0)
    _, singular, rows = np.linalg.svd(matrix, full_matrices=False)
    kept = singular > largest_by_rounding(level, matrix.shape)
    has_gap = not kept[: min(len(matrix), int(live.sum()))].all() or not live.any()
    if not has_gap:
        kept = singular > _noise_cut(singular, matrix.shape)
        kept[0] = True  # under noise that drowns all, still an estimate: the strongest direction
    return RowSpace(rows[kept].T, has_gap)


def residuals(space: RowSpace, inputs: NDArray[np.floating]) -> Values:
    """Share of each input's norm that lies outside the span.

    Args:
        space: The span.
        inputs: Shape (n, in), flattened.

    Returns:
        Fractions in [0, 1], shape (n,); 0 = the record can have been trained on.
    """
    extended = np.column_stack([inputs, np.ones(len(inputs))]).astype(np.float64)
    outside = extended - (extended @ space.basis) @ space.basis.T
    result: Values = np.linalg.norm(outside, axis=1) / np.linalg.norm(extended, axis=1)
    return result


def with_bias(weight: NDArray[Any], bias: NDArray[Any] | None) -> Values:
    """[W, b] as float64, shape (out, in + 1); zeros where there is no bias."""
    column = np.zeros(len(weight)) if bias is None else bias
    return np.column_stack([weight, column]).astype(np.float64)


def rounding_level(weight: NDArray[Any]) -> float:
    """Standard deviation that rounding of the weights can give each entry of an update."""
    epsilon = float(np.finfo(weight.dtype).eps) / 2
    size = float(np.sqrt(np.mean(np.square(weight, dtype=np.float64))))
    return float(epsilon * size * np.sqrt(ROUNDING_STEPS))


def largest_by_rounding(level: float, shape: tuple[int, ...]) -> float:
    """Largest singular value of a matrix of rounding errors (the edge of a Gaussian matrix)."""
    return float(level * (np.sqrt(shape[0]) + np.sqrt(shape[1])))


def _noise_cut(singular: Values, shape: tuple[int, ...]) -> float:
    beta = min(shape) / max(shape)
    factor = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return float(factor * np.median(singular))

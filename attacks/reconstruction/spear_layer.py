"""What the gradient of a ReLU layer says of the batch behind it, before anything is searched.

For z = W x + b the gradients stack to [dW | db] = S [X | 1]: row r of S (out, B) holds what each of
B examples sends back to neuron r, and is 0 where the neuron is off. With Y (out, B) and an
orthonormal basis V (in + 1, B) of the row space, [dW | db] = Y Vᵀ, and for an unknown invertible A

    S = Y A,    [X | 1] = A⁻¹ Vᵀ.

Column i of A is `mask`: Y times it vanishes on the neurons that example i leaves off. Row i of A⁻¹
is `direction`: V times it is the example itself, up to a factor that the appended 1 fixes. The
model is known, so an input says which neurons it leaves off, and those must have a mask. No wrong
input passes this but one that leaves off the same neurons.

References:
    Dimitrov et al., "SPEAR: Exact Gradient Inversion of Batches in Federated Learning",
    NeurIPS 2024. https://arxiv.org/abs/2403.03945
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_UNITS = 2  # of rounding, times the largest singular value: smaller singular values say nothing
_EDGE = 1.2  # times the largest singular value that white noise of this size has
SIGMAS = 8.0  # a number of so many standard deviations of its error is not 0
_NULL = 4.0  # times the norm of as much noise: a combination of rows larger than that is not 0
_NEARLY = 1e-3  # 1 - |cosine| of directions that are worth comparing exactly
_EXCESS = 3  # agreements beyond those that any vector reaches
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Weight (out, in) and bias (out,) of the layer, at one moment of local training."""

    weight: Values
    bias: Values


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The gradient in its row space, and the model that it was taken at.

    Attributes:
        rows: Y over the standard deviation of its rows' errors, shape (n, rank): neurons that
            received any gradient.
        basis: V, orthonormal columns, shape (in + 1, rank).
        noise: Standard deviation of an entry's error in each row, shape (n,).
        live: Neurons that the rows belong to, shape (n,).
        layers: The layer when local training began and, if it took several steps, when it ended;
            rows as above.
        precision: Rounding unit of the client's arithmetic.
    """

    rows: Values
    basis: Values
    noise: Values
    live: NDArray[np.int64]
    layers: tuple[Layer, ...]
    precision: float

    @property
    def rank(self) -> int:
        """Examples that the gradient tells apart."""
        return int(self.basis.shape[1])

    def inputs(self, directions: Values) -> Values:
        """Examples that belong to directions, (..., rank) -> (..., in)."""
        stacked = directions @ self.basis.T
        result: Values = stacked[..., :-1] / stacked[..., -1:]
        return result

    def scaled(self, directions: Values) -> Values:
        """Directions at the length that makes the appended input 1."""
        result: Values = directions / (directions @ self.basis[-1])[..., None]
        return result

    def off(self, example: Values) -> NDArray[np.bool_]:
        """Neurons that an input surely leaves off, shape (n,): not those within rounding of 0.

        Of several steps, those that it leaves off in the first and in the last.
        """
        return self._is_beyond(example, -1.0)

    def agrees(self, example: Values, mask: Values) -> bool:
        """Whether an input turns on the neurons that its mask gives a signal to, and no others.

        A mixture turns on neurons that only one of its examples does, and these get no signal.
        """
        signal = np.abs(self.rows @ mask) / np.linalg.norm(mask)
        off, on = self.off(example), self._is_beyond(example, 1.0)
        limit = _NULL * np.sqrt(off.sum() + self.rank)
        return bool(np.linalg.norm(signal[off]) <= limit and (signal[on] > SIGMAS).all())

    def _is_beyond(self, example: Values, sign: float) -> NDArray[np.bool_]:
        """Neurons whose value is surely of a sign, at each moment that is known, shape (n,)."""
        beyond = np.ones(len(self.rows), dtype=np.bool_)
        for layer in self.layers:
            value = layer.weight @ example + layer.bias
            size = np.abs(layer.weight) @ np.abs(example) + np.abs(layer.bias)
            beyond &= sign * value > SIGMAS * self.precision * size
        return beyond


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A column of A, up to its length.

    Attributes:
        vector: Shape (rank,), length 1.
        others: What else vanishes on the same neurons, orthonormal, shape (rank, k). Each is a
            column of A too, or a sum of some: an example whose active neurons all serve this one.
        spread: Covariance of the vector's error, shape (rank, rank).
    """

    vector: Values
    others: Values
    spread: Values


def evidence(
    weight_grad: Values,
    bias_grad: Values,
    layers: tuple[Layer, ...],
    *,
    precision: float,
    batch_size: int | None,
) -> Evidence | None:
    """Reduce a gradient to its row space; None if no row space stands out of the noise."""
    stacked = np.hstack([weight_grad, bias_grad[:, None]])
    live = np.flatnonzero(stacked.any(axis=1))
    stacked = stacked[live]
    _, singular, right = np.linalg.svd(stacked, full_matrices=False)
    rank = numerical_rank(singular, stacked.any(axis=0).sum(), precision)
    if batch_size is not None and rank is not None:
        rank = min(rank, batch_size)
    if rank is None or rank == 0:
        return None
    basis = right[:rank].T
    rows = stacked @ basis
    rest = stacked - rows @ basis.T
    freedom = max(1, int(stacked.any(axis=0).sum()) - rank)
    measured = np.sqrt(np.square(rest).sum(axis=1) / freedom)
    rounding = precision * np.abs(stacked).max(axis=1)  # the bias's is larger than the average
    ours = np.finfo(np.float64).eps * singular[0]
    noise = np.maximum(np.hypot(measured, rounding), ours)
    here = tuple(Layer(layer.weight[live], layer.bias[live]) for layer in layers)
    return Evidence(rows / noise[:, None], basis, noise, live, here, precision)


def numerical_rank(singular: Values, num_columns: int, precision: float) -> int | None:
    """How many singular values stand out of rounding and white noise; None if all do.

    What is left after the first k is noise if the next one is no larger than white noise of the
    same total power has it: sigma (sqrt(rows - k) + sqrt(columns - k)).

    Args:
        singular: Descending, one for each row (or column, if there are fewer).
        num_columns: Columns that are not all zero.
        precision: Rounding unit of the matrix's entries.
    """
    ours = max(len(singular), num_columns) * np.finfo(np.float64).eps
    floor = max(_UNITS * precision, ours) * singular[0]
    most = min(len(singular), num_columns)
    power = np.append(np.cumsum(np.square(singular[::-1]))[::-1], 0.0)
    for k in range(most):
        left, right = len(singular) - k, num_columns - k
        sigma = np.sqrt(power[k] / (left * right))
        edge = _EDGE * sigma * (np.sqrt(left) + np.sqrt(right))
        if singular[k] <= max(edge, floor):
            return k
    return None


def mask_of(seen: Evidence, direction: Values, *, agreeing: int = 0) -> Mask | None:
    """The mask of an example, if the neurons that it leaves off have one; None if not.

    Args:
        direction: The example's, shape (rank,).
        agreeing: Neurons beyond the first that give this very direction: evidence too.
    """
    off = seen.off(seen.inputs(direction))
    rows, rank = seen.rows[off], seen.rank
    if rank > 1 and len(rows) - (rank - 1) + agreeing < _EXCESS:
        return None
    return _null_mask(rows, direction)


def _null_mask(rows: Values, direction: Values) -> Mask | None:
    """What vanishes on rows (whose errors have standard deviation 1); None if nothing does."""
    rank = len(direction)
    padded = np.vstack([rows, np.zeros((max(0, rank - len(rows)), rank))])
    _, singular, right = np.linalg.svd(padded, full_matrices=False)
    is_null = singular <= _NULL * np.sqrt(len(rows) + rank)
    if not is_null.any():
        return None
    null = right[is_null].T
    vector = null @ (null.T @ direction)
    length = float(np.linalg.norm(vector))
    if length <= _TINY:
        return None
    vector /= length
    left, size, _ = np.linalg.svd(null - np.outer(vector, vector @ null), full_matrices=False)
    inverse = np.where(is_null, 0.0, 1.0 / np.maximum(singular, _TINY))
    return Mask(vector, left[:, size > 0.5], (right.T * np.square(inverse)) @ right)


def parallel_rows(rows: Values) -> list[NDArray[np.int64]]:
    """Groups of two or more rows that are multiples of one another, the largest first.

    Args:
        rows: Shape (n, rank), with errors of standard deviation 1; rows within them count as 0.
    """
    size = np.linalg.norm(rows, axis=1)
    doubt = SIGMAS * np.sqrt(rows.shape[1])  # a row's error, at most
    places = np.flatnonzero(size > 4 * doubt)
    unit = rows[places] / size[places, None]
    cosine = unit @ unit.T
    first, second = np.nonzero(np.triu(np.abs(cosine) > 1 - _NEARLY, 1))
    sign = np.sign(cosine[first, second])[:, None]
    apart = np.linalg.norm(unit[first] - sign * unit[second], axis=1)
    close = apart <= doubt * (1 / size[places[first]] + 1 / size[places[second]])
    linked = np.eye(len(places), dtype=np.bool_)
    linked[first[close], second[close]] = linked[second[close], first[close]] = True
    free, groups = np.ones(len(places), dtype=np.bool_), []
    while free.any():
        partners = np.where(free, (linked & free).sum(axis=1), 0)
        best = int(partners.argmax())
        if partners[best] < 2:
            break
        group = np.flatnonzero(linked[best] & free)
        groups.append(places[group])
        free[group] = False
    return groups

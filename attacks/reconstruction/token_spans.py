"""Whether a vector can be an input of a dense layer, told from the layer's gradient.

The gradient is G = Dᵀ X: its rows span the inputs X, so an input x is a combination x = Gᵀ c of
them, and any other vector has a part outside the span. Noise of deviation s on each entry of G
moves the combination by about s ||c|| in each direction, so an input of the data lies about
s ||c|| √(d - rank) outside the span. That is the tolerance: it is known for each vector, and comes
from the gradient alone. In exact arithmetic it vanishes. It is capped, because a vector that is
not of the data can need a large c, and so could not be told apart by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, chi2

from fl_audit.errors import InputError

Values = NDArray[np.float64]

_MISSED = 1e-6  # chance that Gaussian noise moves an input of the data beyond its tolerance
_UNEVEN = 1.5  # rounding is not of one size everywhere
_FARTHEST = 0.01  # largest tolerance, as a share of the norm; a wrong prefix lies at 0.05 and more
_ROUNDINGS = 32  # of the forward pass that made the input, each half a unit in the last place


@dataclass(frozen=True, slots=True, eq=False)
class InputSpan:
    """The span of a layer's inputs.

    Attributes:
        inside: Orthonormal columns that span the inputs, shape (d, rank).
        outside: Orthonormal columns for the rest, shape (d, d - rank).
        singular: Singular values of the gradient inside, descending, shape (rank,).
        noise: Standard deviation of the noise on each entry of the gradient.
        rounding: Share of an input's norm that rounding in the model's own arithmetic can move.
    """

    inside: Values
    outside: Values
    singular: Values
    noise: float
    rounding: float

    @property
    def rank(self) -> int:
        """Number of linearly independent inputs."""
        return int(self.inside.shape[1])

    @property
    def slack(self) -> int:
        """Dimensions outside: 0 means that every vector lies in the span."""
        return int(self.outside.shape[1])

    def distances(self, inputs: NDArray[np.floating]) -> Values:
        """Share of each vector's norm outside the span, fractions in [0, 1].

        Args:
            inputs: Shape (n, d); none of them zero.

        Returns:
            Shape (n,).
        """
        outside = np.linalg.norm(inputs @ self.outside.astype(inputs.dtype), axis=1)
        result: Values = (outside / np.linalg.norm(inputs, axis=1)).astype(np.float64)
        return result

    def tolerances(self, inputs: Values) -> Values:
        """Largest distance that noise explains for an input of the data, shape (n,)."""
        combination = np.linalg.norm((inputs @ self.inside) / self.singular, axis=1)
        largest = _UNEVEN * np.sqrt(chi2.isf(_MISSED, self.slack))  # in each of these dimensions
        expected = self.noise * largest * combination / np.linalg.norm(inputs, axis=1)
        result: Values = np.minimum(_FARTHEST, self.rounding + expected)
        return result

    def holds(self, inputs: NDArray[np.floating]) -> NDArray[np.bool_]:
        """True where a vector lies in the span, within its tolerance, shape (n,)."""
        near = np.flatnonzero(self.distances(inputs) <= _FARTHEST)
        exact = inputs[near].astype(np.float64)
        result = np.zeros(len(inputs), dtype=bool)
        result[near] = self.distances(exact) <= self.tolerances(exact)
        return result

    def chance(self, others: Values) -> float:
        """Chance that a vector fits that has nothing to do with the data, in [0, 1].

        Taken to point in any direction with the same chance, among those that inputs can have at
        all: a layer norm takes out one dimension.

        Args:
            others: Inputs of any tokens, more than d of them, shape (n, d).
        """
        outside = np.linalg.svd(others @ self.outside, compute_uv=False)
        size = float(np.linalg.norm(others, 2))
        free = int(np.sum(outside > 1e-5 * size))  # above the rounding of float32
        if free == 0:
            return 1.0
        squares = np.square(self.tolerances(others))
        return float(np.mean(beta.cdf(squares, free / 2, self.rank / 2)))


def input_span(
    gradient: Values, *, rtol: float, rounding: float, floor: float = 0.0
) -> InputSpan | None:
    """The span of the inputs behind a dense layer's gradient.

    Args:
        gradient: dL/dW or any multiple of it, shape (out, d).
        rtol: Singular values below this share of the largest are noise.
        rounding: Resolution (eps) of the arithmetic that the inputs were computed in.
        floor: Standard deviation of the rounding that each entry is known to have; 0 if unknown.

    Returns:
        None if the gradient is zero, or drowns in rounding.

    Raises:
        InputError: If it is no matrix of finite numbers.
    """
    if gradient.ndim != 2 or not np.isfinite(gradient).all():
        raise InputError(
            "gradient",
            gradient.shape if gradient.ndim != 2 else "NaN or infinity",
            "must be a matrix of finite numbers",
            "Give the gradient of a dense layer's weight; leave this update out.",
        )
    rows, columns = gradient.shape
    tall = np.linalg.qr(gradient, mode="r") if rows > columns else gradient
    # full: rows of the basis beyond those of a flat gradient span what is outside, too
    _, singular, basis = np.linalg.svd(tall, full_matrices=rows < columns)
    edge = floor * (np.sqrt(rows) + np.sqrt(columns))  # of a matrix of rounding errors
    rank = int(np.sum(singular > max(rtol * singular[0], edge)))
    if rank == 0:
        return None
    spare = (rows - rank) * (columns - rank)  # entries that the noise is measured on
    noise = np.sqrt(np.sum(np.square(singular[rank:])) / spare) if spare > 0 else 0.0
    return InputSpan(
        inside=basis[:rank].T,
        outside=basis[rank:].T,
        singular=singular[:rank],
        noise=max(float(noise), floor),
        rounding=_ROUNDINGS * rounding,
    )


def layer_span(
    module: torch.nn.Module,
    names: Sequence[str],
    gradients: Mapping[str, NDArray[np.floating]],
    *,
    rtol: float,
    roundings: float,
) -> InputSpan | None:
    """The span of an input that some dense layers share: their gradients, one below the other.

    Args:
        module: With the weights that the gradients were taken at.
        names: Of the layers, as submodules.
        gradients: By parameter name.
        rtol: As in `input_span`.
        roundings: How often the weights were rounded on the way, if these are updates; else 0.

    Raises:
        InputError: If a gradient is missing, has the wrong shape or is not finite.
    """
    blocks, weights = [], []
    for name in names:
        parameter = f"{name}.weight"
        weight = module.get_parameter(parameter).detach().cpu().numpy()
        found = gradients.get(parameter)
        if found is None or found.shape != weight.shape:
            raise InputError(
                f"gradient of {parameter!r}",
                None if found is None else found.shape,
                f"the model's weight has shape {weight.shape}",
                "Give the gradients of this model, by parameter name.",
            )
        blocks.append(np.asarray(found, dtype=np.float64))
        weights.append(weight)
    stored = np.concatenate(weights)
    return input_span(
        np.concatenate(blocks),
        rtol=rtol,
        rounding=float(np.finfo(stored.dtype).eps),
        floor=roundings * rounding_of_update(stored) if roundings else 0.0,
    )


def rounding_of_update(weight: NDArray[np.floating]) -> float:
    """Standard deviation of the rounding of each entry of an update: one step, weights stored.

    Half a unit in the last place at most, spread evenly: the unit over √12.
    """
    units = np.spacing(np.abs(weight)).astype(np.float64)
    return float(np.sqrt(np.mean(np.square(units)) / 12))

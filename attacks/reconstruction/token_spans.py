"""Whether a vector can be an input of a dense layer, told from the layer's gradient.

The gradient is G = Dᵀ X: its rows span the inputs X, so an input x is a combination x = Gᵀ c of
them, and any other vector has a part outside the span. Noise of deviation s on each entry of G
moves the combination by about s ||c|| in each direction, so an input of the data lies about
s ||c|| √(d - rank) outside the span. That is the tolerance: it is known for each vector, and comes
from the gradient alone. In exact arithmetic it vanishes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_audit.errors import InputError

Values = NDArray[np.float64]

_DEVIATIONS = 4.0  # noise of an input may be so many times what is expected
_FARTHEST = 0.3  # share of a vector outside the span from which on noise is no excuse
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
        expected = self.noise * np.sqrt(self.slack) * combination / np.linalg.norm(inputs, axis=1)
        return np.minimum(_FARTHEST, self.rounding + _DEVIATIONS * expected)

    def holds(self, inputs: NDArray[np.floating]) -> NDArray[np.bool_]:
        """True where a vector lies in the span, within its tolerance, shape (n,)."""
        near = np.flatnonzero(self.distances(inputs) <= _FARTHEST)
        exact = inputs[near].astype(np.float64)
        result = np.zeros(len(inputs), dtype=bool)
        result[near] = self.distances(exact) <= self.tolerances(exact)
        return result


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
    # square and full: rows beyond the rank of a flat gradient span what is outside
    _, singular, basis = np.linalg.svd(gradient, full_matrices=rows < columns)
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
        found = gradients[parameter] if parameter in gradients else None
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

"""Closed-form inversion of a dense first layer: one example, exactly.

For z = W x + b and one example, [dW | db] = (dL/db) [x | 1]: every row is a multiple of the input
with a 1 behind it. The best rank-one fit of the matrix (total least squares) gives x as the right
singular vector over its last entry. With noise of equal deviation on all entries it is the
maximum-likelihood answer; least squares over the rows, dWᵀ db / (dbᵀ db), takes db for exact, and
noise in db then pulls x towards 0. The learning rate cancels, so an update serves as well as a
gradient.

References:
    Phong et al., "Privacy-preserving deep learning via additively homomorphic encryption", 2018.
    Geiping et al., "Inverting Gradients", NeurIPS 2020, Prop. 3.1. https://arxiv.org/abs/2003.14053
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from attacks.federated.dense import first_dense_layer
from attacks.federated.rounds import Source
from attacks.reconstruction.observed import UpdateSettings, both_seats, observed, seat_notes
from fl_audit.attack_spec import AttackInput, Reconstruction, Reconstructions
from fl_audit.errors import InputError

_POWER_STEPS = 100
_SETTLED = 1e-15  # change of a vector of length 1


class Settings(UpdateSettings):
    """When an update counts as coming from a single example."""

    max_residual: float = Field(default=0.01, gt=0, lt=1)
    """Largest share of the weight update's norm that one example may leave unexplained."""


def as_array(values: NDArray[np.floating] | torch.Tensor) -> NDArray[np.floating]:
    """A tensor's values as an array of the same precision; arrays as they are."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def invert_linear(
    weight_grad: NDArray[np.floating] | torch.Tensor, bias_grad: NDArray[np.floating] | torch.Tensor
) -> NDArray[np.float64]:
    """The input of a dense layer from its gradient on one example.

    Args:
        weight_grad: Gradient (or any multiple of it) of the weight, shape (out, in); array or
            tensor.
        bias_grad: The same multiple of the bias gradient, shape (out,).

    Returns:
        The input, shape (in,), float64.

    Raises:
        InputError: If shapes do not fit, a value is not finite, or the bias gradient is zero.
    """
    weight_grad, bias_grad = as_array(weight_grad), as_array(bias_grad)
    if weight_grad.ndim != 2 or bias_grad.shape != weight_grad.shape[:1]:
        raise InputError(
            "weight_grad, bias_grad",
            (weight_grad.shape, bias_grad.shape),
            "must have shapes (out, in) and (out,)",
            "Give the gradients of one dense layer.",
        )
    if not (np.isfinite(weight_grad).all() and np.isfinite(bias_grad).all()):
        raise InputError("gradients", "NaN or infinity", "must be finite", "Leave this update out.")
    bias, weight = bias_grad.astype(np.float64), weight_grad.astype(np.float64)
    power = float(bias @ bias)
    if power == 0:
        raise InputError(
            "bias_grad",
            "all zeros",
            "the layer received no gradient, so nothing can be inverted",
            "Choose a round in which the client's loss is not yet zero.",
        )
    return _rank_one(np.column_stack([weight, bias]), weight.T @ bias / power)


def _rank_one(stacked: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best rank-one fit's right singular vector over its last entry, by power iteration.

    One step is exact for one example. With noise it takes some; a mixture may not settle, and its
    residual says that it is one.
    """
    vector = np.append(start, 1.0)
    vector /= np.linalg.norm(vector)
    for _ in range(_POWER_STEPS):
        last = vector
        vector = stacked.T @ (stacked @ last)
        vector /= np.linalg.norm(vector)
        if np.linalg.norm(vector - last) < _SETTLED:
            break
    if vector[-1] == 0:
        return start
    result: NDArray[np.float64] = vector[:-1] / vector[-1]
    return result


def rank_one_residual(
    weight_grad: NDArray[np.float64], bias_grad: NDArray[np.float64], inputs: NDArray[np.float64]
) -> float:
    """Share of the weight gradient's norm that the inverted input does not explain.

    0 for a gradient of one example, whatever its label; towards 1 for a mixture. The attacker can
    compute it, so it knows which of its inversions to believe.
    """
    explained = np.outer(bias_grad, inputs)
    return float(np.linalg.norm(weight_grad - explained) / np.linalg.norm(weight_grad))


def _run(given: AttackInput, source: Source) -> Reconstructions:
    settings: Settings = given.settings
    claims, tried, mixed, silent = [], [], 0, 0
    for update in observed(given, source):
        tried.append(update.tried)
        weight_name, bias_name = first_dense_layer(update.update)
        if bias_name is None:
            raise InputError(
                "model",
                weight_name,
                "its first layer has no bias to divide by",
                "Inversion in closed form needs a dense first layer with a bias.",
            )
        weight, bias = update.update[weight_name], update.update[bias_name]
        if not bias.any():
            silent += 1
            continue
        found = invert_linear(weight, bias)
        if rank_one_residual(weight, bias, found) > settings.max_residual:
            mixed += 1
            continue
        claims.append(
            Reconstruction(update.round, update.client, found[None], behind=update.behind)
        )
    notes = [*seat_notes(given.view, source, settings)]
    notes.append(f"{len(claims)} updates come from a single example and were inverted.")
    if mixed:
        notes.append(
            f"{mixed} updates are not explained by a single example (several examples or steps, "
            "weight decay, noise): no claim is made about them."
        )
    if silent:
        notes.append(f"{silent} updates did not touch the layer's bias.")
    return Reconstructions(tuple(claims), tuple(notes), tried=tuple(tried))


ATTACK, LOCAL_ATTACK = both_seats(
    "linear_inversion",
    _run,
    reference="https://arxiv.org/abs/2003.14053",
    summary="A dense first layer gives back a single training example in closed form",
    settings=Settings,
)

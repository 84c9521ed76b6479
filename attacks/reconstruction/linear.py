"""Closed-form inversion of a dense first layer: one example, exactly.

For z = W x + b and one example, dL/dW = (dL/db) xᵀ: every row of the weight gradient is a multiple
of the input. Least squares over the rows gives x = dWᵀ db / (dbᵀ db), which uses the strong rows
most and so bears noise best. The learning rate cancels, so an update serves as well as a gradient.

References:
    Phong et al., "Privacy-preserving deep learning via additively homomorphic encryption", 2018.
    Geiping et al., "Inverting Gradients", NeurIPS 2020, Prop. 3.1. https://arxiv.org/abs/2003.14053
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.federated.dense import first_dense_layer
from fl_audit.attack_spec import (
    AttackInput,
    AttackSettings,
    AttackSpec,
    Reconstruction,
    Reconstructions,
)
from fl_audit.errors import InputError
from fl_audit.threat_model import Observation


class Settings(AttackSettings):
    """When an update counts as coming from a single example."""

    max_residual: float = Field(default=0.01, gt=0, lt=1)
    """Largest share of the weight update's norm that one example may leave unexplained."""


def invert_linear(
    weight_grad: NDArray[np.float64], bias_grad: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The input of a dense layer from its gradient on one example.

    Args:
        weight_grad: Gradient (or any multiple of it) of the weight, shape (out, in).
        bias_grad: The same multiple of the bias gradient, shape (out,).

    Returns:
        The input, shape (in,), float64.

    Raises:
        InputError: If shapes do not fit, a value is not finite, or the bias gradient is zero.
    """
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
    return weight.T @ bias / power


def rank_one_residual(
    weight_grad: NDArray[np.float64], bias_grad: NDArray[np.float64], inputs: NDArray[np.float64]
) -> float:
    """Share of the weight gradient's norm that the inverted input does not explain.

    0 for a gradient of one example, whatever its label; towards 1 for a mixture. The attacker can
    compute it, so it knows which of its inversions to believe.
    """
    explained = np.outer(bias_grad, inputs)
    return float(np.linalg.norm(weight_grad - explained) / np.linalg.norm(weight_grad))


def _run(given: AttackInput) -> Reconstructions:
    view, claims, mixed, silent = given.view, [], 0, 0
    for server_round in view.rounds:
        for client in view.clients(server_round):
            update = view.client_update(server_round, client)
            weight_name, bias_name = first_dense_layer(update)
            if bias_name is None:
                raise InputError(
                    "model",
                    weight_name,
                    "its first layer has no bias to divide by",
                    "Inversion in closed form needs a dense first layer with a bias.",
                )
            weight, bias = update[weight_name], update[bias_name]
            if not bias.any():
                silent += 1
                continue
            found = invert_linear(weight, bias)
            if rank_one_residual(weight, bias, found) > given.settings.max_residual:
                mixed += 1
                continue
            claims.append(Reconstruction(server_round, client, found[None]))
    notes = [f"{len(claims)} updates come from a single example and were inverted."]
    if mixed:
        notes.append(
            f"{mixed} updates are not explained by a single example (several examples or steps, "
            "weight decay, noise): no claim is made about them."
        )
    if silent:
        notes.append(f"{silent} updates did not touch the layer's bias.")
    return Reconstructions(tuple(claims), tuple(notes))


ATTACK = AttackSpec(
    name="linear_inversion",
    kind="reconstruction",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    run=_run,
    reference="https://arxiv.org/abs/2003.14053",
    summary="A dense first layer gives back a single training example in closed form",
    settings=Settings,
)

"""SPEAR: the whole batch behind a gradient, exactly, from a dense first layer with ReLU after it.

Three steps, each certified by what the attacker knows. The gradient's row space tells how many
examples there are (`spear_layer`). Examples that are alone in some neurons are read off there and
subtracted, so that others are alone (`spear_peel`, ours). What is left is found as in the paper, by
sampling neurons that one example leaves off (`spear_search`). An input is called sure if the
neurons that it leaves off are those that its signal leaves out, and nothing else would fit.

Gradients of several steps add up to the same form, as long as a neuron that an example leaves off
stays off. The learning rate, and momentum, cancel. Weight decay does not.

Examples that turn on the same neurons, and send back signals in one ratio, are one example to this
layer: the mean of the two, weighted by their signals. Nets of one hidden layer and two classes send
back one ratio always. Nothing in the layer's gradient tells then but a batch size above the rank.

References:
    Dimitrov et al., "SPEAR: Exact Gradient Inversion of Batches in Federated Learning",
    NeurIPS 2024. https://arxiv.org/abs/2403.03945
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.reconstruction.linear import as_array
from attacks.reconstruction.spear_blind import sparsest_masks
from attacks.reconstruction.spear_deeper import with_next_layer
from attacks.reconstruction.spear_found import Found
from attacks.reconstruction.spear_layer import Evidence, Layer, Values, evidence
from attacks.reconstruction.spear_peel import peel
from attacks.reconstruction.spear_search import search
from fl_audit.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a gradient gave back.

    Attributes:
        inputs: Shape (b, in).
        signals: What each input sends back to each neuron, dL/dz, shape (b, out), at the
            gradient's scale.
        is_sure: Inputs that the model and the gradient confirm, shape (b,).
        errors: Standard deviation of an input value's error that the gradient's own noise
            explains, shape (b,).
        rank: Examples that the gradient tells apart; None if it has no low rank.
        tries: Draws of neurons that the search took; 0 if it was not needed.
        notes: What is missing, and why.
    """

    inputs: Values
    signals: Values
    is_sure: NDArray[np.bool_]
    errors: Values
    rank: int | None
    tries: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class DenseGradient:
    """Gradient of a dense layer, and the layer that it was taken at.

    Attributes:
        weight: dL/dW or any multiple, shape (out, in).
        bias: The same multiple of dL/db, shape (out,).
        layer: Weight and bias.
        after: Weight and bias after local training, where it took several steps.
    """

    weight: NDArray[np.floating]
    bias: NDArray[np.floating]
    layer: Layer
    after: Layer | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """How far to go.

    Attributes:
        max_batch: More examples than this are not attempted.
        max_tries: Draws of neurons before giving up.
        max_seconds: Time before giving up. With a limit, results depend on the machine.
    """

    max_batch: int = 8
    max_tries: int = 400_000
    max_seconds: float = math.inf


def spear(
    weight_grad: NDArray[np.floating] | torch.Tensor,
    bias_grad: NDArray[np.floating] | torch.Tensor,
    batch_size: int | None = None,
    *,
    rng: np.random.Generator,
    layer: Layer | None = None,
    following: DenseGradient | None = None,
    precision: float | None = None,
    budget: Budget = Budget(),
) -> Batch:
    """The batch of examples behind the gradient of a dense layer that ReLU follows.

    Args:
        weight_grad: dL/dW or any multiple, shape (out, in); an array or a tensor.
        bias_grad: The same multiple of dL/db, shape (out,).
        batch_size: Examples in the batch at most; estimated from the numerical rank if not given.
        rng: Draws the neurons.
        layer: Weight and bias of the layer. Whoever inverts an update knows them: they find more
            examples, and say which are right. Without them the sparsest choice is taken, and none
            of it is sure.
        following: Gradient of the next layer, as for `recover_batch`; needs `layer`.
        precision: Rounding unit of the client's arithmetic; by default the gradient's own.
        budget: When to give up.

    Returns:
        The inputs that were found, and which of them are sure. Equal examples count as one.

    Raises:
        InputError: If shapes do not fit, values are not finite, the gradient is zero, or the batch
            size is no positive whole number.
    """
    weight_grad, bias_grad = as_array(weight_grad), as_array(bias_grad)
    _check_batch_size(batch_size)
    if layer is not None:
        layer = Layer(*(as_array(part).astype(np.float64) for part in (layer.weight, layer.bias)))
        gradient = DenseGradient(weight_grad, bias_grad, layer)
        return recover_batch(
            gradient,
            rng=rng,
            batch_size=batch_size,
            following=following,
            precision=precision,
            budget=budget,
        )
    if following is not None:
        raise InputError(
            "following", "given", "helps only where the first layer is known", "Give `layer`, too."
        )
    _check_gradient(weight_grad, bias_grad)
    unit = float(np.finfo(weight_grad.dtype).eps) / 2 if precision is None else precision
    weight, bias = weight_grad.astype(np.float64), bias_grad.astype(np.float64)
    seen = evidence(weight, bias, (), precision=unit, batch_size=None)
    out, width = weight_grad.shape
    refusal = _refusal(seen, budget, batch_size)
    if seen is None or refusal is not None:
        return _nothing(out, width, None if seen is None else seen.rank, refusal or "")
    deadline = time.monotonic() + budget.max_seconds
    masks, tries = sparsest_masks(seen, rng=rng, max_tries=budget.max_tries, deadline=deadline)
    if masks is None:
        note = f"Too few sparse combinations were found in {tries} draws."
        return replace(_nothing(out, width, seen.rank, note), tries=tries)
    directions = np.asarray(np.linalg.inv(masks), dtype=np.float64)
    found = seen.inputs(directions)
    signals = np.zeros((seen.rank, out))
    signals[:, seen.live] = (seen.noise[:, None] * (seen.rows @ masks)).T
    signals *= (directions @ seen.basis[-1])[:, None]
    note = "The layer is not given: nothing confirms what was found."
    unknown = np.full(seen.rank, np.inf)
    is_sure = np.zeros(seen.rank, dtype=np.bool_)
    return Batch(found, signals, is_sure, unknown, seen.rank, tries, (note,))


def recover_batch(
    gradient: DenseGradient,
    *,
    rng: np.random.Generator,
    batch_size: int | None = None,
    following: DenseGradient | None = None,
    precision: float | None = None,
    budget: Budget = Budget(),
) -> Batch:
    """The batch of examples behind the gradient of a dense layer that ReLU follows.

    Args:
        gradient: Of the layer that sees the examples.
        rng: Draws the neurons.
        batch_size: Examples in the batch at most; estimated from the numerical rank if not given.
        following: Gradient of the next layer, if it is dense with ReLU after it too. Its inputs
            are found likewise, and tell examples apart that turn on the same neurons here.
        precision: Rounding unit of the client's arithmetic; by default the gradient's own.
        budget: When to give up.

    Returns:
        The inputs that were found, and which of them are sure. Equal examples count as one.

    Raises:
        InputError: If shapes do not fit, values are not finite, the gradient is zero, or the batch
            size is no positive whole number.
    """
    _check_batch_size(batch_size)
    out, width = gradient.weight.shape
    unit = float(np.finfo(gradient.weight.dtype).eps) / 2 if precision is None else precision
    seen = _evidence(gradient, unit, None)
    refusal = _refusal(seen, budget, batch_size)
    if seen is None or refusal is not None:
        return _nothing(out, width, None if seen is None else seen.rank, refusal or "")
    found, tries = Found(), 0
    deadline = time.monotonic() + budget.max_seconds
    peel(seen, found)
    if following is not None and found.is_open(seen):
        after = _evidence(following, unit, seen.rank)
        found = with_next_layer(seen, found, gradient.layer, after)
    if len(found) < seen.rank:
        tries = search(seen, found, rng=rng, max_tries=budget.max_tries, deadline=deadline)
    return _batch(seen, found, tries, out=out, batch_size=batch_size)


def _refusal(seen: Evidence | None, budget: Budget, batch_size: int | None) -> str | None:
    """Why a search is not begun, if it is not."""
    if seen is None:
        return "The gradient has no low rank: too many examples, or too much noise."
    if batch_size is not None and seen.rank > batch_size:
        return f"The gradient's rank is {seen.rank}: larger than the batch size, {batch_size}."
    if seen.rank > budget.max_batch:
        return f"The gradient holds {seen.rank} examples: more than {budget.max_batch}, the limit."
    return None


def _evidence(gradient: DenseGradient, unit: float, batch_size: int | None) -> Evidence | None:
    _check(gradient)
    return evidence(
        gradient.weight.astype(np.float64),
        gradient.bias.astype(np.float64),
        (gradient.layer,) if gradient.after is None else (gradient.layer, gradient.after),
        precision=unit,
        batch_size=batch_size,
    )


def _batch(seen: Evidence, found: Found, tries: int, *, out: int, batch_size: int | None) -> Batch:
    told = found.solution(seen)
    signals = np.zeros((len(told.errors), out))
    signals[:, seen.live] = (seen.noise[:, None] * (seen.rows @ told.masks)).T
    notes = []
    if batch_size is not None and seen.rank < batch_size:
        notes.append(
            f"{seen.rank} of {batch_size} examples can be told apart: the others are equal to one "
            "of them, or turn no neuron on."
        )
    if len(told.errors) < seen.rank:
        notes.append(
            f"{len(told.errors)} of {seen.rank} examples were found; the search ended after "
            f"{tries} draws."
        )
    if not told.is_sure.all():
        notes.append(
            f"{(~told.is_sure).sum()} examples are not sure: noise hides them, or another example "
            "turns on every neuron that they turn on."
        )
    inputs = seen.inputs(told.directions)
    return Batch(inputs, signals, told.is_sure, told.errors, seen.rank, tries, tuple(notes))


def _nothing(out: int, width: int, rank: int | None, note: str) -> Batch:
    none = np.empty(0)
    return Batch(
        none.reshape(0, width), none.reshape(0, out), none.astype(np.bool_), none, rank, 0, (note,)
    )


def _check_batch_size(batch_size: int | None) -> None:
    is_whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
    if batch_size is not None and not (is_whole and batch_size >= 1):
        raise InputError(
            "batch_size",
            batch_size,
            "must be a whole number of at least 1",
            "Leave it out to take the gradient's rank.",
        )


def _check(gradient: DenseGradient) -> None:
    _check_gradient(gradient.weight, gradient.bias)
    layer = gradient.layer
    shapes = (gradient.weight.shape, layer.weight.shape, layer.bias.shape)
    if shapes[1:] != (shapes[0], shapes[0][:1]):
        raise InputError(
            "layer",
            shapes,
            "its weight and bias must have the shapes of their gradients",
            "Give the layer that the gradient was taken at.",
        )
    if not (np.isfinite(layer.weight).all() and np.isfinite(layer.bias).all()):
        raise InputError("layer", "NaN or infinity", "must be finite", "Leave this update out.")


def _check_gradient(weight: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise InputError(
            "gradient",
            (weight.shape, bias.shape),
            "must have shapes (out, in) and (out,)",
            "Give the gradients of one dense layer.",
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise InputError("gradient", "NaN or infinity", "must be finite", "Leave this update out.")
    if not bias.any():
        raise InputError(
            "gradient",
            "bias all zeros",
            "the layer received no gradient, so nothing can be inverted",
            "Choose a round in which the client's loss is not yet zero.",
        )

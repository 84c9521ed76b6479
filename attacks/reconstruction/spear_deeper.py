"""The next layer's help: examples that turn on the same neurons here may differ there.

If every neuron that an example turns on is turned on by another one too, this layer's gradient is
explained as well by a mixture of the two. The next layer's inputs are found in the same way from
its own gradient, and are what this layer passes on. Examples that are sure here are subtracted
there, and those that are sure there are solved for here.
"""

from __future__ import annotations

import numpy as np

from attacks.reconstruction.spear_found import Found
from attacks.reconstruction.spear_layer import SIGMAS, Evidence, Layer, Values, mask_of
from attacks.reconstruction.spear_peel import peel

_SPAN = 1e-6  # of an input: what may be in doubt


def with_next_layer(seen: Evidence, found: Found, layer: Layer, after: Evidence | None) -> Found:
    """Examples that this layer and the next one give together.

    Args:
        layer: This layer, all of its neurons.
        after: The next layer's gradient; None if it has no low rank.
    """
    if after is None or after.rank < seen.rank:
        return found
    told = found.solution(seen)
    examples = seen.inputs(told.directions[told.is_likely])
    passed_on = np.maximum(examples @ layer.weight.T + layer.bias, 0.0)
    deeper = Found()
    _adopt_inputs(after, deeper, passed_on, told.errors[told.is_likely] * _gain(layer))
    peel(after, deeper)
    told = deeper.solution(after)
    both = Found()
    is_new = told.is_sure & ~told.is_adopted  # the others would only confirm themselves
    hidden = after.inputs(told.directions[is_new])
    _adopt_outputs(seen, both, hidden, told.errors[is_new])
    peel(seen, both)
    return both


def _gain(layer: Layer) -> float:
    """What an error of an input value becomes at most, in a neuron."""
    return float(np.linalg.norm(layer.weight, axis=1).max())


def _adopt_inputs(seen: Evidence, found: Found, inputs: Values, errors: Values) -> None:
    """Add examples whose inputs to this layer are known, if its gradient holds them.

    Args:
        inputs: Shape (k, in).
        errors: Standard deviation of their values' errors, shape (k,).
    """
    stacked = np.column_stack([inputs, np.ones(len(inputs))])
    for direction, whole, error in zip(stacked @ seen.basis, stacked, errors, strict=True):
        outside = np.linalg.norm(whole - seen.basis @ direction)
        limit = SIGMAS * (error * np.sqrt(len(whole)) + _SPAN * np.linalg.norm(whole))
        mask = mask_of(seen, direction) if outside <= limit else None
        if mask is not None:
            found.add(mask, direction, is_adopted=True)


def _adopt_outputs(seen: Evidence, found: Found, hidden: Values, errors: Values) -> None:
    """Add examples of which is known what this layer passes on.

    Such an example solves a linear system with an equation for each neuron that it turns on, and as
    many unknowns as there are examples. It counts if the system has a solution.

    Args:
        hidden: Outputs of the ReLU that follows, shape (k, out).
        errors: Standard deviation of their errors, shape (k,).
    """
    layer = seen.layers[0]
    system = np.column_stack([layer.weight, layer.bias]) @ seen.basis
    for output, error in zip(hidden[:, seen.live], errors, strict=True):
        on = output > SIGMAS * error
        if on.sum() <= seen.rank:
            continue
        left = np.vstack([system[on], seen.basis[-1]])
        inverse = np.linalg.pinv(left)
        direction = inverse @ np.append(output[on], 1.0)
        size = np.abs(layer.weight) @ np.abs(seen.inputs(direction)) + np.abs(layer.bias)
        margin = SIGMAS * (error + seen.precision * size)
        fits = np.abs(np.maximum(system @ direction, 0.0) - output) <= margin
        doubt = float(np.linalg.norm(inverse, 2) * margin.max())
        if doubt > _SPAN * np.linalg.norm(direction) or not fits.all():
            continue
        mask = mask_of(seen, direction)
        if mask is not None:
            found.add(mask, direction, is_adopted=True)

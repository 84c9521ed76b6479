"""The one-step ReLU trap: a first-layer neuron that fires for one record only.

The neuron is w.(x - mu) > (1 - margin) * w.(target - mu), with w = S^-1 (target - mu) from mean mu
and covariance S of records like the clients': the direction in which the target is farthest from
all others. A ReLU that does not fire has no gradient, so after any number of local steps of SGD its
row and bias are bit for bit as they were sent (or shrunk by weight decay) - unless it fired.

Now and then another record lies beyond the target in that direction, and fires the neuron in its
place or with it. Neurons move by a combination of the records (x, 1) that fired them, each neuron
by another one: so as long as no more records than a target has neurons fired them, the target lies
in the span of their movements if, and only if, it is one of these records.

References:
    Pichler, Romanelli, Vega, Piantanida, "Perfectly accurate membership inference by a dishonest
    central server in federated learning", 2022. https://arxiv.org/abs/2203.16463
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.federated.dense import first_dense_layer
from fl_audit.errors import InputError
from fl_audit.files import Arrays

Matrix = NDArray[np.float64]
_SHRINKAGES = (0.05, 0.3, 1.0, 5.0)
"""Shares of the mean variance mixed into the covariance, which may be singular: neurons of one
target take the first, the second, ..., and begin again."""
_ROUNDING = 4  # roundings to float32 in a local training: a shrunk row is not exactly parallel


@dataclass(frozen=True, slots=True, eq=False)
class Traps:
    """Neurons that fire for one record each; those of one target stand side by side.

    Attributes:
        weights: Rows of the first layer, shape (k, d), unit L2 norm.
        biases: Shape (k,).
        heights: Pre-activation of each neuron on its own target, > 0, shape (k,).
        false_fire: Share of the auxiliary records that each fires for, shape (k,): what is to be
            expected of records that are not the target. 0 of m means below 3/m with 95 %
            confidence.
    """

    weights: Matrix
    biases: Matrix
    heights: Matrix
    false_fire: Matrix


def build_traps(
    targets: Matrix, auxiliary: Matrix, *, margin: float = 0.01, neurons: int = 1
) -> Traps:
    """Traps for some targets.

    Args:
        targets: Flattened inputs, shape (n, d).
        auxiliary: Records like the clients', none of them a target, shape (m, d), m >= 2.
        margin: Fraction in (0, 1): the neuron fires from 1 - margin of the target's own distance
            on. Smaller fires for fewer others; larger withstands changes of the input, such as
            augmentation.
        neurons: How many for each target.

    Returns:
        k = n * neurons traps.

    Raises:
        InputError: If there are too few auxiliary records, or a target equals their mean.
    """
    if not 0 < margin < 1:
        raise InputError("margin", margin, "must be above 0 and below 1", "Leave it at 0.01.")
    if len(auxiliary) < 2:
        raise InputError(
            "auxiliary records",
            len(auxiliary),
            "a trap needs at least 2 records like the clients' to know where others lie",
            "Give the adversary some: [game] auxiliary = 100.",
        )
    targets, auxiliary = targets.astype(np.float64), auxiliary.astype(np.float64)
    centre = auxiliary.mean(axis=0)
    away = targets - centre
    if not away.any(axis=1).all():
        raise InputError(
            "targets",
            int(np.flatnonzero(~away.any(axis=1))[0]),
            "this target equals the mean of the auxiliary records, so no direction tells it apart",
            "Leave it out.",
        )
    away = np.repeat(away, neurons, axis=0)
    rows = _directions(away, auxiliary - centre, neurons)
    reach = np.einsum("kd,kd->k", rows, away)  # > 0: the covariance is positive definite
    biases = -(rows @ centre) - (1 - margin) * reach
    fires = auxiliary @ rows.T + biases > 0
    return Traps(rows, biases, margin * reach, fires.mean(axis=0))


def _directions(away: Matrix, others: Matrix, neurons: int) -> Matrix:
    """Unit directions in which targets are far from others; all centred. Shape (k, d)."""
    covariance = np.atleast_2d(np.cov(others, rowvar=False))
    spread = max(float(np.trace(covariance)) / len(covariance), float(np.finfo(np.float64).tiny))
    rows = np.empty_like(away)
    for place in range(neurons):
        share = _SHRINKAGES[place % len(_SHRINKAGES)]
        mixed = covariance + share * spread * np.eye(len(covariance))
        rows[place::neurons] = np.linalg.solve(mixed, away[place::neurons].T).T
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def plant_traps(
    arrays: Arrays, traps: Traps, neurons: NDArray[np.int64], *, scale: float = 0.2
) -> dict[str, NDArray[np.generic]]:
    """A model with traps in place of neurons of its first dense layer.

    Rows are short, so that rounding hides less of how they move, but not so short that they stand
    out. Outgoing weights stay as they are, unless all of a neuron's are zero: then no gradient
    would flow, and they get the size of the others'.

    Args:
        arrays: The model, by name; not modified.
        neurons: Places of the traps in the layer, shape (k,).
        scale: Length of the rows, in median row norms of the layer.

    Returns:
        All arrays, of the same dtypes.

    Raises:
        InputError: If the first layer is not dense with a bias, the inputs have another size, or
            there are fewer neurons than traps.
    """
    weight, bias = trap_layer(arrays)
    layer = np.array(arrays[weight])
    if layer.shape[1] != traps.weights.shape[1] or len(neurons) != len(traps.weights):
        raise InputError(
            "traps",
            traps.weights.shape,
            f"layer {weight!r} has shape {layer.shape}, and {len(neurons)} neurons are given",
            "Give one neuron a trap, and targets of the model's input shape.",
        )
    planted = {name: np.array(array) for name, array in arrays.items()}
    norm = float(np.median(np.linalg.norm(layer.astype(np.float64), axis=1))) or 1.0
    planted[weight][neurons] = scale * norm * traps.weights
    planted[bias][neurons] = scale * norm * traps.biases
    out = _outgoing(arrays, weight, len(layer))
    if out is not None:
        columns = planted[out]
        size = float(np.abs(columns.astype(np.float64)).mean()) or 1.0
        dead = [n for n in neurons.tolist() if not columns[:, n].any()]
        signs = np.where(np.arange(len(columns)) % 2 == 0, size, -size)
        columns[:, dead] = signs[:, None]
    return planted


def planted_neurons(sent: Arrays, honest: Arrays) -> NDArray[np.int64]:
    """First-layer neurons whose row or bias differs between what was sent and the global model."""
    weight, bias = trap_layer(sent)
    differs = (np.asarray(sent[weight]) != np.asarray(honest[weight])).any(axis=1)
    return np.flatnonzero(differs | (np.asarray(sent[bias]) != np.asarray(honest[bias])))


def movement(sent: Arrays, back: Arrays, neurons: NDArray[np.int64]) -> Matrix:
    """How far each neuron moved in a client's hands, as a share of its norm, shape (k,).

    Weight decay alone shrinks row and bias by one factor, so what counts is the part of the new
    row that is not parallel to the old one. What rounding can explain is 0: a trap that did not
    fire has exactly 0.
    """
    weight, bias = trap_layer(sent)
    before = _rows(sent, weight, bias, neurons)
    after = _rows(back, weight, bias, neurons)
    factor = (before * after).sum(axis=1) / np.maximum((before**2).sum(axis=1), 1e-300)
    moved = np.linalg.norm(after - factor[:, None] * before, axis=1)
    moved /= np.maximum(np.linalg.norm(before, axis=1), 1e-300)
    rounding = _ROUNDING * _rounding(sent, weight)
    is_shrunk = np.abs(1 - factor) > rounding
    found: Matrix = np.where(is_shrunk & (moved <= rounding), 0.0, moved)
    return found


def explained(
    sent: Arrays, back: Arrays, neurons: NDArray[np.int64], record: NDArray[np.floating]
) -> float:
    """How far a record lies in the span of what neurons moved by.

    Args:
        neurons: Those that the record fires, and that moved.
        record: Flattened, shape (d,).

    Returns:
        Share of the length of (record, 1) in the span: 1 if the record is one of at most k that
        fired these k neurons, otherwise the cosine of its angle to the span. Weight decay adds the
        old rows to the movements, and takes a little off.
    """
    weight, bias = trap_layer(sent)
    before = _rows(sent, weight, bias, neurons)
    change = _rows(back, weight, bias, neurons) - before
    way = np.append(record.astype(np.float64), 1.0)
    _, sizes, rows = np.linalg.svd(change, full_matrices=False)
    level = _rounding(sent, weight) * float(np.linalg.norm(before, axis=1).max())
    kept = rows[sizes > level]
    return float(np.linalg.norm(kept @ way) / np.linalg.norm(way))


def _rounding(arrays: Arrays, weight: str) -> float:
    """Relative size of a rounding of the layer's weights."""
    is_double = arrays[weight].dtype == np.float64
    return float(np.finfo(np.float64 if is_double else np.float32).eps)


def fires(
    sent: Arrays, inputs: NDArray[np.floating], neurons: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which neurons fire for which inputs, shape (n, k).

    Args:
        inputs: Flattened, shape (n, d).
    """
    weight, bias = trap_layer(sent)
    rows = _rows(sent, weight, bias, neurons)
    result: NDArray[np.bool_] = inputs.astype(np.float64) @ rows[:, :-1].T + rows[:, -1] > 0
    return result


def trap_layer(arrays: Arrays) -> tuple[str, str]:
    """Names of weight and bias of the layer that traps go into.

    Raises:
        InputError: If the first layer is not dense, or has no bias.
    """
    weight, bias = first_dense_layer(arrays)
    if bias is None:
        raise InputError(
            "model", weight, "the first layer has no bias, and a trap needs one", "Use another one."
        )
    return weight, bias


def _rows(arrays: Arrays, weight: str, bias: str, neurons: NDArray[np.int64]) -> Matrix:
    """Row and bias of some neurons, shape (k, d + 1)."""
    rows = np.asarray(arrays[weight])[neurons].astype(np.float64)
    return np.column_stack([rows, np.asarray(arrays[bias])[neurons].astype(np.float64)])


def _outgoing(arrays: Arrays, weight: str, width: int) -> str | None:
    """The dense layer that reads these neurons, if the next one is dense."""
    names = [n for n in arrays if n.endswith("weight") and arrays[n].ndim >= 2]
    after = names[names.index(weight) + 1 :]
    return after[0] if after and arrays[after[0]].shape[1:] == (width,) else None

"""Fishing by the last layer alone: for any model that ends in a dense layer with a bias.

Only the fished class c keeps weights: the direction v in which features of its records differ most
from those of others (Fisher's), times a large factor. All other classes have one bias, so the layer
answers "c" or "not c" by whether v'h is above a threshold, and answers with certainty. A record's
gradient below the last layer is w_c (p_c - y_c): nothing where the answer is right, the same as
ever where it is wrong. So the threshold is put where about one record of class c in a batch is
called "not c", and as few others as can be are called "c". Where the class is rare enough, the
threshold is above all records: then each record of the class passes (the class cut alone).

What the last layer's gradient says of the other records is taken out again: for each record the
rows of all classes add up to 0, so row c is minus the sum of the others, and of one record that
passes, row k is p_k times that with p_k = 1 / (K - 1).

References:
    Wen et al., "Fishing for user data in large-batch federated learning via gradient
    magnification", ICML 2022. https://arxiv.org/abs/2202.00580
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.features import penultimate
from attacks.reconstruction.label_layer import last_layer
from attacks.reconstruction.optimisation.regularisers import has_batch_norm
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from fl_audit.records import Records
from fl_audit.trace.query import load_weights

Matrix = NDArray[np.float64]
_MARGIN = 60.0  # logits between what passes and what does not: e^-60 is nothing in float32
_SHARP = 1000.0  # logits for one standard deviation of v'h: few records are in between
_RIDGE = 0.01  # of the mean variance of a feature
_FEWEST = 4  # records of the class: half of them fit the direction, half the threshold
_GAIN = 1.1  # a feature cut is made where it is so many times as likely to leave one record
_NEVER = -1e4  # bias that no input can lift above the other classes


@dataclass(frozen=True, slots=True)
class Passing:
    """Shares of records that have a gradient below a fishing model's last layer.

    Attributes:
        own: Of all records, those of the fished class that pass.
        others: Of all records, those of other classes that pass all the same.
    """

    own: float
    others: float

    def alone(self, batch: int) -> float:
        """Probability that a batch has one record of the class that passes, and no other."""
        return float(batch * self.own * (1 - self.own - self.others) ** (batch - 1))


def last_names(module: torch.nn.Module) -> tuple[str, str]:
    """Names of the last layer's weight and bias.

    Raises:
        InputError: If it is not dense or has no bias, if records of a batch depend on each other,
            or are tokens.
    """
    last = last_layer(module)
    if last.bias is None:
        raise InputError(
            "model", last.weight, "fishing needs a bias in the last layer", "Give it one."
        )
    if has_batch_norm(module):
        raise InputError(
            "model",
            "BatchNorm",
            "each record's gradient depends on all of its batch, so none can be alone",
            'Use norm = "group".',
        )
    if any(isinstance(layer, torch.nn.Embedding) for layer in module.modules()):
        raise InputError(
            "model",
            "Embedding",
            "tokens have no gradient, so a record could not be searched",
            'Use the attack "token_recovery", which needs no planted model.',
        )
    return last.weight, last.bias


def fish_last_layer(
    module: torch.nn.Module, arrays: Arrays, proxy: Records, label: int, *, batch: int
) -> dict[str, NDArray[np.generic]]:
    """A model whose last layer lets about one record of a class through.

    Args:
        module: The architecture; its weights are overwritten.
        arrays: The global model, by name; not modified.
        proxy: Records like the clients'.
        label: The class to fish for.
        batch: Records in a client's batch.

    Returns:
        All arrays, of the same dtypes.

    Raises:
        InputError: If the model does not end in a dense layer with a bias, has BatchNorm, or there
            is no such class or too few records of it.
    """
    weight, bias = last_names(module)
    classes = len(arrays[bias])
    if not 0 <= label < classes:
        raise InputError(
            "fished class", label, f"the model has classes 0 to {classes - 1}", "Name one."
        )
    is_own = proxy.labels == label
    if is_own.sum() < _FEWEST or not (~is_own).any():
        raise InputError(
            "fished class",
            label,
            f"{is_own.sum()} of {len(proxy)} auxiliary records have it: at least {_FEWEST} must, "
            "and some must not",
            "Give the adversary more records: [game] auxiliary = 1000.",
        )
    load_weights(module, arrays)
    features = penultimate(module, np.asarray(proxy.inputs[:], dtype=np.float64))
    held = _held_out(proxy.labels)
    row = _direction(features[~held], is_own[~held])
    answers = features @ row
    edge = _edge(answers[held], is_own[held], batch)
    if edge is None:  # the class cut alone: weights of the usual size
        size = float(np.linalg.norm(np.asarray(arrays[weight], np.float64), axis=1).mean()) or 1.0
        factor = size / float(np.linalg.norm(row))
        # as far again above the highest answer as answers lie apart
        level = factor * float(answers.max() + np.ptp(answers)) + _MARGIN
    else:
        factor, level = _SHARP, _SHARP * edge
    changed = {name: np.array(array) for name, array in arrays.items()}
    changed[weight][:] = 0.0
    changed[weight][label] = factor * row
    changed[bias][:] = level
    changed[bias][label] = 0.0  # small numbers move visibly in float32: this one counts records
    return changed


def _held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Every second record of each class, shape (n,)."""
    held = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        held[np.flatnonzero(labels == label)[1::2]] = True
    return held


def _direction(features: Matrix, is_own: NDArray[np.bool_]) -> Matrix:
    """Fisher's discriminant, shape (f,): its answers have variance 1 within the classes."""
    own, others = features[is_own].mean(axis=0), features[~is_own].mean(axis=0)
    within = features - np.where(is_own[:, None], own, others)
    covariance = within.T @ within / len(features)
    ridge = _RIDGE * float(np.trace(covariance)) / len(covariance)
    if ridge == 0:
        raise InputError(
            "model",
            "the last layer's inputs",
            "do not depend on the record",
            "Start from weights that let it through.",
        )
    row = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), own - others)
    spread = float((within @ row).std())
    result: Matrix = row / spread if spread > 0 else row
    return result


def _edge(answers: Matrix, is_own: NDArray[np.bool_], batch: int) -> float | None:
    """Threshold most likely to leave one record; None if the class cut alone is as good."""
    low = np.sort(answers[is_own])
    chances = [
        Passing(
            float((is_own & (answers < edge)).mean()), float((~is_own & (answers > edge)).mean())
        ).alone(batch)
        for edge in (low[1:] + low[:-1]) / 2
    ]
    best = int(np.argmax(chances))
    if chances[best] <= _GAIN * Passing(float(is_own.mean()), 0.0).alone(batch):
        return None
    return float(low[best] + low[best + 1]) / 2


def read_layer_cut(sent: Arrays, names: tuple[str, str]) -> int | None:
    """The class that a model fishes for, by its last layer; None if it is no fishing model."""
    weight, bias = (np.asarray(sent[name]).astype(np.float64) for name in names)
    rows = np.flatnonzero(weight.any(axis=1))
    if len(rows) != 1 or np.ptp(np.delete(bias, rows)) > 0:
        return None
    return int(rows[0])


def passing_share(
    module: torch.nn.Module, sent: Arrays, label: int, records: Records
) -> Passing | None:
    """How many records of the adversary's own pass: of those that set no direction.

    Returns:
        None if there is none.
    """
    names = last_names(module)
    held = records.take(np.flatnonzero(_held_out(records.labels)))
    if not len(held):
        return None
    passed = passes_layer(module, sent, names, held)
    is_own = held.labels == label
    return Passing(float((passed & is_own).mean()), float((passed & ~is_own).mean()))


def passes_layer(
    module: torch.nn.Module, sent: Arrays, names: tuple[str, str], records: Records
) -> NDArray[np.bool_]:
    """Which records have a gradient below the last layer, shape (n,)."""
    label = read_layer_cut(sent, names)
    assert label is not None  # the caller fished
    load_weights(module, sent)
    features = penultimate(module, np.asarray(records.inputs[:], dtype=np.float64))
    row = np.asarray(sent[names[0]])[label].astype(np.float64)
    bias = np.asarray(sent[names[1]]).astype(np.float64)
    others = bias[label - 1] + np.log(len(bias) - 1)  # -1: the last class, if it fishes for class 0
    is_called = features @ row + bias[label] > others
    result: NDArray[np.bool_] = is_called != (records.labels == label)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Caught:
    """The gradient of what passed a fishing model.

    Attributes:
        model: The search's model: the sent one with the last layer at a scale that counts the
            record's features as much as all other gradients.
        gradients: By parameter name, as that model's for a single record.
        passed: Records of the class that passed, less those of others that did, times learning rate
            over batch size; a whole multiple of that.
        is_empty: Whether nothing passed.
    """

    model: torch.nn.Module
    gradients: dict[str, Matrix]
    passed: float
    is_empty: bool


def caught_gradient(
    module: torch.nn.Module, sent: Arrays, gradients: Mapping[str, Matrix], label: int
) -> Caught:
    """What passed, freed of what the last layer says of all other records.

    Args:
        module: The architecture; not modified.
        sent: The fishing model.
        gradients: Observed at it, by parameter name, up to a factor.
        label: The fished class.
    """
    weight, bias = last_names(module)
    rows = np.delete(gradients[weight], label, axis=0)
    own = -rows.sum(axis=0)
    passed = -float(gradients[bias][label])
    below = {n: g for n, g in gradients.items() if n not in (weight, bias)}
    size = float(np.sqrt(sum(float(np.sum(g**2)) for g in below.values())))
    noise = np.finfo(np.float32).eps * float(np.abs(rows).sum())
    is_empty = size == 0 or float(np.abs(own).max()) <= noise
    classes = len(gradients[bias])
    shares = np.full(classes, -1 / (classes - 1))
    shares[label] = 1.0
    last = shares[:, None] * own
    ratio = 1.0 if is_empty else float(np.linalg.norm(last)) / size
    found = {name: ratio * value for name, value in below.items()}
    found |= {weight: last, bias: -passed * shares}
    searched = {name: np.array(array) for name, array in sent.items()}
    searched[weight][label] = ratio * np.asarray(sent[weight])[label].astype(np.float64)
    searched[bias][:] = 0.0
    searched[bias][label] = _NEVER  # it passed: the search need not look where it would not
    model = copy.deepcopy(module)
    load_weights(model, searched)
    return Caught(model, {n: found[n] for n in gradients}, passed, bool(is_empty))

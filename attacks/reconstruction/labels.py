"""Label counts from the last layer's gradient: how many examples of each class a batch held.

With mean cross-entropy, the bias gradient of class c is the batch mean of softmax_c less the share
of examples labelled c. If records of class k have mean softmax row M[k], a batch with class shares
s has the gradient g = (Mᵀ - I) s, which is solved for s >= 0 with sum 1. M comes from auxiliary
records, or noise, run through the known model; without labels for them, one mean softmax stands
for every class.

A layer without bias gives the same of its weight: projected on the mean feature vector, scaled so
that it meets that vector in 1, a weight is a bias whose input is 1 on average. Over several local
steps the gradient is a mean along the way from the received model to the returned one, and so the
softmax is averaged along it.

References:
    Wainakh et al., "User-level label leakage from gradients in federated learning", PoPETs 2022.
    Geng et al., "Towards general deep leakage in federated learning", 2021 (no bias).
    Dimitrov et al., "Data leakage in federated averaging", TMLR 2022 (several steps).
    Zhao, Mopuri, Bilen, "iDLG", 2020. https://arxiv.org/abs/2001.02610
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.reconstruction.label_layer import LastLayer, check_gradients, last_layer, values_of
from attacks.reconstruction.label_reading import Reading, needed
from attacks.reconstruction.label_shares import (
    class_shares,
    last_bias,
    likely_batch_size,
    mean_by_class,
)
from attacks.reconstruction.label_softmax import noise_inputs
from attacks.reconstruction.label_steps import LocalWork
from attacks.rounding import apportion
from fl_audit.errors import InputError

__all__ = [
    "LabelEstimate",
    "LocalWork",
    "class_shares",
    "estimate_labels",
    "idlg_counts",
    "label_counts",
    "labels_of_batch",
    "last_bias",
    "mean_by_class",
]

Values = NDArray[np.float64]
Counts = NDArray[np.int64]
_NUM_NOISE = 256  # stand-ins drawn where there are no proxies
_BEYOND = 1.001  # a mean of softmax minus one-hot is within [-1, 1], up to rounding


@dataclass(frozen=True, slots=True, eq=False)
class LabelEstimate:
    """How many records of each class are behind a gradient.

    Attributes:
        counts: Shape (classes,); they sum to `batch_size`.
        shares: Before rounding, shape (classes,), sum 1.
        batch_size: As given, or as told from the shares.
        notes: Where the softmax came from, and what was estimated.
    """

    counts: Counts
    shares: Values
    batch_size: int
    notes: tuple[str, ...]


def label_counts(
    model: torch.nn.Module,
    gradients: Mapping[str, Any],
    batch_size: int | None,
    *,
    proxy_inputs: Any = None,
    proxy_labels: Any = None,
    generator: torch.Generator | None = None,
    input_shape: Sequence[int] | None = None,
    work: LocalWork | None = None,
) -> Counts:
    """Number of examples of each class in the batch behind a gradient: see `estimate_labels`.

    Returns:
        Counts per class, shape (classes,).
    """
    return estimate_labels(
        model,
        gradients,
        batch_size,
        proxy_inputs=proxy_inputs,
        proxy_labels=proxy_labels,
        generator=generator,
        input_shape=input_shape,
        work=work,
    ).counts


def estimate_labels(
    model: torch.nn.Module,
    gradients: Mapping[str, Any],
    batch_size: int | None,
    *,
    proxy_inputs: Any = None,
    proxy_labels: Any = None,
    generator: torch.Generator | None = None,
    input_shape: Sequence[int] | None = None,
    work: LocalWork | None = None,
) -> LabelEstimate:
    """Number of examples of each class behind a gradient, and what the figure rests on.

    Args:
        model: The model, with the weights and in the mode (training or not) at which the gradient
            was taken. It is left as it is.
        gradients: Gradient of the mean cross-entropy by parameter name, arrays or tensors in any
            order; of several local steps, `pseudo_gradient` of the update as it is.
        batch_size: Records behind it; the counts sum to it. None: told from the shares, where
            they allow it. Then the counts are known up to a common factor only.
        proxy_inputs: Inputs like the batch's to estimate the softmax from, shape (n, ...). None:
            noise, for which `generator` and `input_shape` (of one input) are needed.
        proxy_labels: Classes of the proxies, shape (n,), if known.
        generator: Draws the noise, and the simulation of local steps.
        work: The local steps that the gradient is a mean of; None for a plain gradient.

    Raises:
        InputError: If a gradient does not fit the model (naming the first), is not finite or all
            zero, if the model does not end in a dense layer, if the model refuses the inputs, or
            if the batch size is not positive, or unknown and not to be told.
    """
    layer = _checked(model, gradients, batch_size)
    proxies, labels, notes = _proxies(model, layer, proxy_inputs, proxy_labels)
    if proxies is None:
        proxies, notes = _noise(model, input_shape, generator)
    together = batch_size if work is None else work.training.batch_size
    reading = Reading(model, layer, gradients, proxies, labels, together or len(proxies), work)
    shares, spread = reading.shares(generator)
    largest = float(np.abs(reading.loss_gradient()).max())
    if reading.source == layer.bias and largest > _BEYOND:
        notes.append(
            f"The gradient of the last bias reaches {largest:.2g}, beyond what a mean "
            "cross-entropy can give: the learning rate or the steps assumed are wrong, or noise "
            "was added."
        )
    size = batch_size
    if size is None:
        size = likely_batch_size(shares, spread, len(proxies))
        notes.append(
            f"The batch size was not known: {size} is the smallest that fits the shares, and its "
            "multiples fit too."
        )
    return LabelEstimate(apportion(shares, size), shares, size, tuple(notes))


def idlg_counts(model: torch.nn.Module, gradients: Mapping[str, Any], batch_size: int) -> Counts:
    """Counts by the sign of the last weight's gradient, for comparison.

    A class's row is a sum of features times softmax, less the features of its own examples. With
    features that are not negative (after ReLU or sigmoid), a negative row sum means that the class
    is there. One example: the class of the smallest row sum. Several: every class with a negative
    row sum, or the `batch_size` smallest of them, in equal parts; how often each occurs is not to
    be seen in a sign.

    Returns:
        Counts per class, shape (classes,).

    Raises:
        InputError: As `estimate_labels`.
    """
    layer = _checked(model, gradients, batch_size)
    rows = values_of(gradients, layer.weight).sum(axis=1)
    negative = int((rows < 0).sum())
    present = np.argsort(rows, kind="stable")[: min(max(1, negative), batch_size)]
    shares = np.zeros(layer.classes)
    shares[present] = 1 / len(present)
    return apportion(shares, batch_size)


def labels_of_batch(counts: Counts) -> NDArray[np.int64]:
    """A label for each input of the batch, ascending, shape (b,): batches have no order."""
    result: NDArray[np.int64] = np.repeat(np.arange(len(counts)), counts)
    return result


def _checked(
    model: torch.nn.Module, gradients: Mapping[str, Any], batch_size: int | None
) -> LastLayer:
    if batch_size is not None and batch_size < 1:
        raise InputError(
            "batch_size", batch_size, "must be at least 1", "Give the size of the client's batch."
        )
    layer = last_layer(model)
    check_gradients(model, gradients)
    return layer


def _proxies(
    model: torch.nn.Module, layer: LastLayer, inputs: Any, labels: Any
) -> tuple[torch.Tensor | None, NDArray[np.int64] | None, list[str]]:
    """Proxies on the model's device, their classes, and what to say about them."""
    if inputs is None:
        return None, None, []
    like = next(model.parameters())
    proxies = torch.as_tensor(np.asarray(inputs)).to(like.device)
    if proxies.is_floating_point():  # tokens stay whole numbers
        proxies = proxies.to(like.dtype)
    classes = None if labels is None else np.asarray(labels, dtype=np.int64)
    if len(proxies) == 0:
        raise InputError(
            "proxy_inputs", 0, "are none", "Give some, or leave them out and noise is drawn."
        )
    if classes is not None and (
        classes.shape != (len(proxies),) or classes.min() < 0 or classes.max() >= layer.classes
    ):
        raise InputError(
            "proxy_labels",
            classes.shape,
            f"must be one class below {layer.classes} for each of {len(proxies)} proxies",
            "Leave them out if they are not known.",
        )
    known = "" if classes is None else ", by class"
    return proxies, classes, [f"The softmax is that of {len(proxies)} auxiliary records{known}."]


def _noise(
    model: torch.nn.Module, input_shape: Sequence[int] | None, generator: torch.Generator | None
) -> tuple[torch.Tensor, list[str]]:
    if input_shape is None:
        raise InputError(
            "proxy_inputs, input_shape",
            None,
            "one of them is needed to estimate the model's softmax",
            "Give records like the clients', or the shape of one input to draw noise.",
        )
    noise = noise_inputs(input_shape, _NUM_NOISE, generator=needed(generator))
    like = next(model.parameters())
    return noise.to(like), [f"The softmax is that of {_NUM_NOISE} noise inputs in [0, 1]."]

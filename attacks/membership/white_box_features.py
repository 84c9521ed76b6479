"""What an attack inside a model reads off each record: answers, loss, label, gradients, outputs.

A layer's gradient enters in two parts: its direction (the gradient divided by its L2 norm, so that
records whose gradients differ by orders of magnitude compare), and the logarithm of the norm.
Where a layer has more numbers than are kept, a fixed random projection takes their place.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import nn

from attacks.membership.signals import check_logits, logit_confidence
from attacks.membership.white_box_layers import Selection
from attacks.membership.white_box_probe import (
    Projection,
    joined,
    own_parameters,
    record_activations,
    record_gradients,
    require_module,
)
from attacks.shadows.target import Target
from fl_audit.errors import InputError
from fl_audit.randomness import derived_rng
from fl_audit.records import Records

_TOTAL_BYTES = 1 << 29  # of all features that an attack network is trained on: 512 MB
_KEPT = 8192  # numbers of a layer that are kept as they are
_PROJECTED = 2048  # numbers that a larger layer is projected to
_LEAST_PROJECTED = 16
_LEAST_NORM = 1e-12  # a gradient below it is rounding of a loss that is 0
_LEAST_LOG_P = -30.0  # nats
_LARGE_PHI = 30.0  # from it on, the loss is exp(-phi) to the last bit

Blocks = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Of n records.

    Attributes:
        scalars: Numbers that speak of membership by their size, (n, s): minus the log of the loss,
            and minus the log of each gradient norm; higher = more like a member.
        blocks: Name -> (n, d), or (n, out, k) for a layer's gradient that is kept as a matrix.
    """

    scalars: NDArray[np.float64]
    blocks: Blocks

    def __len__(self) -> int:
        return len(self.scalars)

    def take(self, rows: NDArray[np.int64]) -> Features:
        """The given rows."""
        return Features(self.scalars[rows], {n: b[rows] for n, b in self.blocks.items()})


def gradient_norms(
    module: nn.Module, records: Records, *, device: str = "cpu"
) -> NDArray[np.float64]:
    """L2 norm of the gradient of each record's loss over all parameters, shape (n,).

    The loss is the cross-entropy in nats, or for regression the squared error. A copy of the model
    is evaluated, in eval mode.

    Raises:
        InputError: If the model refuses the records, or has no parameters.
    """
    owned = copy.deepcopy(module).to(device).eval()
    names = [name for name, _ in owned.named_parameters()]
    if not names:
        raise InputError(
            "model", type(module).__name__, "has no parameters", "Attack its answers instead."
        )
    norms = np.zeros(len(records))
    for rows, gradients in record_gradients(owned, records, names):
        squares = [g.flatten(1).double().square().sum(1) for g in gradients.values()]
        norms[rows] = torch.stack(squares).sum(0).sqrt().cpu().numpy()
    return norms


def minus_log_loss(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Minus the logarithm of the cross-entropy in nats, (n,): the loss, on a scale without tails.

    Finite for a loss of any size, also one that is 0 in floats.
    """
    phi = logit_confidence(logits, labels)
    loss = np.logaddexp(0, -np.minimum(phi, _LARGE_PHI))  # log(1 + exp(-phi))
    found: NDArray[np.float64] = np.where(phi > _LARGE_PHI, phi, -np.log(loss))
    return found


class FeatureMaker:
    """Makes features that compare between models of one architecture.

    Args:
        selection: Layers to look at, besides the answers of the model.
        loss: Whether the loss is a feature.
        label: Whether the class is, as one number for each class.
        num_records: How many records the attack network is trained on: the more, the smaller the
            projections of large layers, so that memory is bounded.
        seed: Of the projections.
    """

    def __init__(
        self, selection: Selection, *, loss: bool, label: bool, num_records: int, seed: int
    ) -> None:
        self._selection, self._loss, self._label, self._seed = selection, loss, label, seed
        layers = len(selection.gradients) + len(selection.activations)
        most = _TOTAL_BYTES // (4 * max(1, num_records * layers))
        self._kept = min(_KEPT, most)
        self._width = max(_LEAST_PROJECTED, min(_PROJECTED, most))
        self._projections: dict[str, Projection] = {}

    @property
    def projected(self) -> list[str]:
        """Which features were too large to be kept as they are."""
        return sorted(self._projections)

    def features(self, target: Target, records: Records, logits: NDArray[np.float64]) -> Features:
        """Features of records under a model.

        Args:
            logits: The model's answers, shape (n, classes).

        Raises:
            InputError: If the model has no weights to look at, or gives no gradient.
        """
        check_logits(logits, records.labels)
        scalars = [np.empty((len(records), 0))]
        blocks: Blocks = {}
        is_classification = records.targets is None
        if self._loss:
            scalars.append(minus_log_loss(logits, records.labels)[:, None])
        if is_classification:
            log_p = np.maximum(log_softmax(logits, axis=1), _LEAST_LOG_P)
            blocks["answers"] = log_p.astype(np.float32)
        if self._label and is_classification:
            blocks["label"] = np.eye(logits.shape[1], dtype=np.float32)[records.labels]
        if self._selection.gradients:
            norms, found = self._gradients(require_module(target), records)
            scalars.append(norms)
            blocks |= found
        if self._selection.activations:
            blocks |= self._activations(require_module(target), records)
        return Features(np.concatenate(scalars, axis=1), blocks)

    def _gradients(self, module: nn.Module, records: Records) -> tuple[NDArray[np.float64], Blocks]:
        """Minus the log norms (n, layers), of several also together, first; and the directions."""
        own = {path: own_parameters(module, path) for path in self._selection.gradients}
        parts: dict[str, list[NDArray[np.float32]]] = {_gradient(path): [] for path in own}
        norms = []
        for _, found in record_gradients(module, records, [n for ns in own.values() for n in ns]):
            of_layers = []
            for path, names in own.items():
                matrix = joined([found[name] for name in names])
                norm = torch.linalg.vector_norm(matrix.flatten(1), dim=1, dtype=torch.float64)
                scale = norm.clamp(min=_LEAST_NORM).float().cpu().numpy()
                reduced = self._reduced(_gradient(path), matrix)
                shape = (-1, *[1] * (reduced.ndim - 1))
                parts[_gradient(path)].append(reduced / scale.reshape(shape))
                of_layers.append(norm)
            if len(of_layers) > 1:
                of_layers.insert(0, torch.stack(of_layers).norm(dim=0))
            norms.append(torch.stack(of_layers, 1).cpu().numpy())
        log_norms = np.log(np.maximum(np.concatenate(norms), _LEAST_NORM))
        return -log_norms, {name: np.concatenate(blocks) for name, blocks in parts.items()}

    def _activations(self, module: nn.Module, records: Records) -> Blocks:
        paths = self._selection.activations
        parts: dict[str, list[NDArray[np.float32]]] = {_activation(path): [] for path in paths}
        for found in record_activations(module, records, paths):
            for path, values in found.items():
                parts[_activation(path)].append(self._reduced(_activation(path), values))
        return {name: np.concatenate(blocks) for name, blocks in parts.items()}

    def _reduced(self, name: str, values: torch.Tensor) -> NDArray[np.float32]:
        """(rows, d) or (rows, out, k), projected where a row is too large.

        A matrix keeps its outputs, and each output's k numbers are projected in the same way, as
        long as that leaves enough of each.
        """
        shape = values.shape[1:]
        if shape.numel() > self._kept:
            columns = self._width // shape[0] if len(shape) > 1 else 0
            flat = values if columns >= _LEAST_PROJECTED else values.flatten(1)
            width = columns if columns >= _LEAST_PROJECTED else self._width
            if name not in self._projections:
                rng = derived_rng(self._seed, name)
                self._projections[name] = Projection(flat.shape[-1], width, rng)
            values = self._projections[name](flat)
        found: NDArray[np.float32] = values.float().cpu().numpy()
        return found


def _gradient(path: str) -> str:
    return f"gradient of {path or 'the model'}"


def _activation(path: str) -> str:
    return f"output of {path or 'the model'}"

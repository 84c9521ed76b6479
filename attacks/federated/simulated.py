"""Updates that an adversary makes itself: a client's local training, on records of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_audit.local_training import LocalTraining
from fl_audit.records import Records
from fl_audit.trace.query import load_weights


def simulate_update(
    module: Any,
    received: Mapping[str, NDArray[np.generic]],
    records: Records,
    training: LocalTraining,
    *,
    server_round: int,
    rng: np.random.Generator,
    device: str = "cpu",
) -> dict[str, NDArray[np.float64]]:
    """What a client with these records would send: its parameters minus those it received.

    SGD on mean cross-entropy with the client's learning rate, batches, momentum, weight decay and
    proximal term. Buffers and faults are not imitated.

    Returns:
        Update by parameter name, float64.
    """
    load_weights(module, received)
    module.to(device).train()
    parameters = dict(module.named_parameters())
    start = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.SGD(
        parameters.values(),
        lr=training.learning_rate_in(server_round),
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    inputs = torch.from_numpy(records.inputs[:]).to(device)
    labels = torch.from_numpy(records.labels).to(device)
    size = min(training.batch_size, len(records))
    epochs = 1 if training.algorithm == "fedsgd" else training.local_epochs
    last = size if training.algorithm == "fedsgd" else len(records)
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(records))).to(device)
        for first in range(0, last, size):
            rows = order[first : first + size]
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(module(inputs[rows]), labels[rows])
            if training.proximal_mu:
                apart = [(p - start[n]).square().sum() for n, p in parameters.items()]
                loss = loss + training.proximal_mu / 2 * torch.stack(apart).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return {
        name: (p.detach() - start[name]).double().cpu().numpy() for name, p in parameters.items()
    }


class Features:
    """Updates as vectors of moderate length, all of one length however large they are.

    The last two parameters stand as they are where they are small; the others are sketched: each
    entry goes, with a random sign, to one of `size` places (a count sketch keeps inner products on
    average). Both parts have length 1, so that how long a client trains says nothing.

    Args:
        size: Places of the sketch.
    """

    _LAST = 2  # parameters: weight and bias of the last layer
    _MOST = 4096  # entries that are kept as they are

    def __init__(self, size: int, *, rng: np.random.Generator) -> None:
        self._size, self._rng = size, rng
        self._tables: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}

    def __call__(self, update: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """The vector of an update, shape (features,)."""
        sketch = np.zeros(self._size)
        last = []
        names = list(update)
        for name in names:
            values = np.asarray(update[name], dtype=np.float64).ravel()
            if name in names[-self._LAST :] and len(values) <= self._MOST:
                last.append(values)
            else:
                places, signs = self._table(name, len(values))
                sketch += np.bincount(places, weights=signs * values, minlength=self._size)
        return np.concatenate([_unit(sketch), _unit(np.concatenate([*last, np.zeros(0)]))])

    def _table(self, name: str, length: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if name not in self._tables:
            signs = self._rng.choice(np.array([-1.0, 1.0]), size=length)
            self._tables[name] = self._rng.integers(self._size, size=length), signs
        return self._tables[name]


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector

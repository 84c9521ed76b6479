"""What a malicious server plants to get records back, round after round.

Rows are drawn anew each round from a fixed seed, so a resumed run sends the same bytes. Attacks of
this package read them out: docs/malicious_server.md says which.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.federated.server_behaviours import Merge, ServerBehaviour, ServerMeans, ServerTurn
from attacks.federated.traps import trap_layer
from attacks.reconstruction.fishing import Cut, fish, is_two_dense
from attacks.reconstruction.fishing_layer import fish_last_layer
from attacks.reconstruction.imprint_bins import Kind, fit_imprints
from attacks.reconstruction.planted import plant_rows
from attacks.reconstruction.weight_traps import quantile_rows, trap_rows
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from fl_audit.threat_model import Knowledge

Matrix = NDArray[np.float64]


class _Planting(ServerBehaviour):
    """Settings of all that is planted."""

    knows: ClassVar[Knowledge] = Knowledge.AUXILIARY_DATA

    merge: Merge = "update"
    """As for the others; by default what was planted is taken out of what is merged."""

    def check(self, means: ServerMeans) -> None:
        """Plant once, so that what cannot work is refused before the first round."""
        state = means.model().state_dict()
        arrays = {name: value.cpu().numpy() for name, value in state.items()}
        self.send(ServerTurn(1, 0, arrays, None, 0), means)

    def key(self, turn: ServerTurn, means: ServerMeans) -> Hashable:
        """All clients of a round get one model."""
        return turn.server_round


class _Rows(_Planting):
    """Rows in place of the first dense layer's."""

    seed: int = Field(default=0, ge=0)
    """Of the rows that are drawn; each round draws others."""
    rows: int | None = Field(default=None, ge=2)
    """Rows to plant; as many as the layer has neurons by default."""
    gain: float = Field(default=1.0, gt=0)
    """Size of the outgoing weights: the larger, the more of the gradient is the rows'."""

    def send(self, turn: ServerTurn, means: ServerMeans) -> Arrays:
        """The global model with rows in its first dense layer."""
        proxy = _flat(means)
        width = len(turn.model[trap_layer(turn.model)[0]])
        rng = np.random.default_rng([self.seed, turn.server_round])
        rows, biases = self._draw(self.rows or width, proxy, means, rng=rng)
        return plant_rows(
            turn.model, rows, biases, proxy=proxy, gain=self.gain, rescale=self._may_shrink()
        )

    @abstractmethod
    def _draw(
        self, num: int, proxy: Matrix, means: ServerMeans, *, rng: np.random.Generator
    ) -> tuple[Matrix, Matrix]:
        """Weights (r, d) and biases (r,), r <= num."""

    def _may_shrink(self) -> bool:
        return True


class Imprint(_Rows):
    """Rows that sort records into bins by one number each."""

    directions: int = Field(default=1, ge=1)
    """Numbers to measure; rows are shared among them. Two or more give more back than one."""
    bins: Kind = "cumulative"
    """"cumulative" for ReLU, "sparse" for the model "imprint" with activation "clamp"."""

    def _draw(
        self, num: int, proxy: Matrix, means: ServerMeans, *, rng: np.random.Generator
    ) -> tuple[Matrix, Matrix]:
        imprints = fit_imprints(
            proxy,
            means.auxiliary.labels,
            num // self.directions,
            input_shape=means.auxiliary.input_shape,
            directions=self.directions,
            kind=self.bins,
            rng=rng,
        )
        parts = [imprint.rows(self.bins) for imprint in imprints]
        return np.vstack([rows for rows, _ in parts]), np.concatenate([own for _, own in parts])

    def _may_shrink(self) -> bool:
        return self.bins == "cumulative"  # clamped rows have the size of their bin


class QuantileTraps(_Rows):
    """Random rows, with quantiles of the server's own records as thresholds."""

    batch: int = Field(default=20, ge=1)
    """Records in a client's batch: what the quantiles are made for."""
    spread: bool = True
    """Thresholds at many quantiles; false: one record in a batch fires each row, as published."""

    def _draw(
        self, num: int, proxy: Matrix, means: ServerMeans, *, rng: np.random.Generator
    ) -> tuple[Matrix, Matrix]:
        return quantile_rows(num, proxy, self.batch, spread=self.spread, rng=rng)


class TrapWeights(_Rows):
    """Rows of negative and slightly smaller positive weights, for inputs in [0, 1]."""

    scale: float = Field(default=0.97, gt=0, le=1)
    """Size of the positive weights in terms of the negative ones."""

    def _draw(
        self, num: int, proxy: Matrix, means: ServerMeans, *, rng: np.random.Generator
    ) -> tuple[Matrix, Matrix]:
        return trap_rows(num, proxy.shape[1], scale=self.scale, rng=rng)


class Fishing(_Planting):
    """Let one record of a batch through."""

    merge: Merge = "leave-out"
    """As for the others; by default lost, because a gradient made large would ruin the model."""
    label: int | None = Field(default=None, ge=0)
    """The class to fish for; by default each class in its turn."""
    batch: int = Field(default=20, ge=1)
    """Records in a client's batch: about one of them is to pass."""

    def send(self, turn: ServerTurn, means: ServerMeans) -> Arrays:
        """The global model with a class cut and a feature cut."""
        _flat(means)  # says what is missing
        labels = np.unique(means.auxiliary.labels)
        place = turn.server_round - 1
        label = int(labels[place % len(labels)]) if self.label is None else self.label
        if not is_two_dense(turn.model):
            return fish_last_layer(
                means.model(), turn.model, means.auxiliary, label, batch=self.batch
            )
        neuron = place % len(turn.model[trap_layer(turn.model)[0]])
        return fish(turn.model, means.auxiliary, Cut(label, neuron), self.batch)


def _flat(means: ServerMeans) -> Matrix:
    if not len(means.auxiliary):
        raise InputError(
            "auxiliary records",
            0,
            "what is planted is fitted to records like the clients'",
            "Give the adversary some: [game] auxiliary = 1000.",
        )
    records = means.auxiliary
    return np.asarray(records.inputs[:]).reshape(len(records), -1).astype(np.float64)


PLANTINGS: dict[str, type[ServerBehaviour]] = {
    "fishing": Fishing,
    "imprint": Imprint,
    "quantile_traps": QuantileTraps,
    "trap_weights": TrapWeights,
}

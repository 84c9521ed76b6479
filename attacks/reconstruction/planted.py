"""Planted rows: how a malicious server puts them into the first dense layer, and finds them again.

Rows are small and their outgoing weights large, so that the layer hardly moves the answer, and its
gradient outweighs the others'. All rows share their outgoing weights: a record has the same signal
g_i in every row that it fires. Where the next layer is the last one, the server makes |g_i| the
same for all records too: outgoing weights are plus or minus one size, and the last bias gives
classes of either sign the same probability.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.federated.traps import planted_neurons, trap_layer
from attacks.reconstruction.observed import Observed, observed
from attacks.reconstruction.peeling import could_be_records
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.files import Arrays

Matrix = NDArray[np.float64]
_SHIFT = 0.01  # by how much rows may move an answer's logit at most, on the server's own records
_EQUAL = 1e-3  # relative: outgoing weights that differ by less count as the same
_ROUNDING = 1e-6  # of a sum's norm: what adding up in float32 may be off
_SAME_SIZE, _NEARLY = 0.05, 0.25  # relative; share of the commonest size's count
_CLUSTER = 2.0  # quiet rows are those up to so many times the energy of the quietest


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """One update of a client that received planted rows.

    Attributes:
        seen: The update.
        rows: Planted weights, shape (r, d).
        biases: Shape (r,).
        sums: Change of (row, bias) in the client's hands, shape (r, d + 1).
        equal: Whether the signals of all records have one size.
        batch: Records behind the update, where the threat model grants what it takes to know it.
        steps: Local steps, likewise.
    """

    seen: Observed
    rows: Matrix
    biases: Matrix
    sums: Matrix
    equal: bool
    batch: int | None
    steps: int | None

    @property
    def rounding(self) -> Matrix:
        """Variance of one entry of each sum that float32 explains, shape (r,)."""
        own = np.hypot(np.linalg.norm(self.rows, axis=1), self.biases)
        off = _ROUNDING * np.linalg.norm(self.sums, axis=1) + np.finfo(np.float32).eps * own
        result: Matrix = off**2 / self.sums.shape[1]
        return result


def planted_updates(given: AttackInput, remedy: str) -> Iterator[Planted]:
    """Updates of clients that received planted rows, by round and client.

    Args:
        remedy: For an error's last sentence: which server plants them.

    Raises:
        ObservationError: If the view does not grant the models.
        InputError: If no client received a planted model, or the first layer is not dense.
    """
    found = False
    for seen in observed(given, "clients"):
        honest = given.view.global_model(seen.round)
        weight, bias = trap_layer(seen.model)
        neurons = planted_neurons(seen.model, honest)
        if not len(neurons):
            continue
        found = True
        yield Planted(
            seen,
            np.asarray(seen.model[weight])[neurons].astype(np.float64),
            np.asarray(seen.model[bias])[neurons].astype(np.float64),
            np.column_stack([seen.update[weight][neurons], seen.update[bias][neurons]]),
            has_equal_signals(seen.model, neurons),
            batch_size(seen),
            local_steps(seen),
        )
    if not found:
        raise InputError("received models", "none", "no client received a planted model", remedy)


def plant_rows(
    arrays: Arrays,
    rows: Matrix,
    biases: Matrix,
    *,
    proxy: Matrix,
    gain: float = 1.0,
    rescale: bool = True,
) -> dict[str, NDArray[np.generic]]:
    """A model with these rows in its first dense layer, and nothing else behind that layer.

    Args:
        arrays: The model, by name; not modified.
        rows: Shape (r, d).
        biases: Shape (r,).
        proxy: Records of the server's own, shape (m, d): they set the size of the rows.
        gain: Size of the outgoing weights. The gradient of the rows is proportional to it.
        rescale: Shrink all rows by one factor; False keeps what has a scale of its own.

    Returns:
        All arrays, of the same dtypes.

    Raises:
        InputError: If the first layer is not dense with a bias, is not followed by a dense layer,
            has fewer neurons than rows, or takes other inputs.
    """
    weight, bias = trap_layer(arrays)
    out = next_layer(arrays, weight)
    shape = arrays[weight].shape
    if shape[0] < len(rows) or shape[1] != rows.shape[1]:
        raise InputError(
            "planted rows",
            rows.shape,
            f"layer {weight!r} has shape {shape}",
            "Plant fewer rows, or use a wider first layer.",
        )
    planted = {name: np.array(array) for name, array in arrays.items()}
    places = np.linspace(0, shape[0] - 1, len(rows)).round().astype(np.int64)
    shift = gain * float(np.maximum(proxy @ rows.T + biases, 0).sum(axis=1).max())
    scale = _SHIFT / shift if rescale and shift > 0 else 1.0
    planted[weight][places] = scale * rows
    planted[bias][places] = scale * biases
    planted[out][:] = 0.0
    signs = np.where(np.arange(len(planted[out])) % 2 == 0, 1.0, -1.0)
    planted[out][:, places] = gain * signs[:, None]
    last_bias = out.removesuffix("weight") + "bias"
    if _is_last(arrays, out) and last_bias in planted:
        planted[last_bias][:] = np.where(signs > 0, -np.log((signs > 0).sum()), 0.0)
        planted[last_bias][signs < 0] = -np.log(max(1, (signs < 0).sum()))
    return planted


def has_equal_signals(arrays: Arrays, neurons: NDArray[np.int64]) -> bool:
    """Whether a record's signal has one size whatever its class, by the model that was sent."""
    weight, _ = trap_layer(arrays)
    out = next_layer(arrays, weight)
    last_bias = out.removesuffix("weight") + "bias"
    if not _is_last(arrays, out) or last_bias not in arrays:
        return False
    columns = np.asarray(arrays[out]).astype(np.float64)
    own = columns[:, neurons]
    others = np.delete(columns, neurons, axis=1)
    logits = np.asarray(arrays[last_bias]).astype(np.float64)
    likely = np.exp(logits - logits.max())
    likely /= likely.sum()
    size = float(np.abs(own).max())
    tolerance = _EQUAL * size
    same = float(np.ptp(own, axis=1).max()) <= tolerance and not others.any()
    one_size = float(np.ptp(np.abs(own[:, 0]))) <= tolerance
    return bool(size > 0 and same and one_size and abs(likely @ own[:, 0]) <= tolerance)


def signal_unit(sums: Matrix, variance: Matrix, bounds: tuple[Matrix, Matrix]) -> float | None:
    """The one size of signals, if a sum's last entry is a whole multiple of it.

    A record alone has one unit, and most sums that could be records are: so it is the smallest size
    that is nearly as common as the commonest.

    Args:
        sums: Shape (r, d + 1).
        variance: Noise of one entry of each, shape (r,).
        bounds: Smallest and largest value of each input, shape (d,) each.

    Returns:
        None if no sum could be a record.
    """
    sizes = np.abs(sums[could_be_records(sums, variance, bounds), -1])
    if not len(sizes):
        return None
    near = np.abs(sizes[:, None] - sizes) <= _SAME_SIZE * sizes[:, None]
    common = near.sum(axis=1)
    kept = np.flatnonzero(common >= _NEARLY * common.max())
    return float(np.median(sizes[near[kept[sizes[kept].argmin()]]]))


def quiet_variance(energy: Matrix, size: int) -> float:
    """Noise variance of one entry, from sums of `size` squares of which some hold only noise.

    The quietest sums hold no record, and are about alike: it is the median of those near the
    quietest. If every sum holds a record, it says too much, and fewer records are found.
    """
    quiet = energy[energy <= _CLUSTER * energy.min()]
    return float(np.median(quiet)) / size


def next_layer(arrays: Arrays, weight: str) -> str:
    """Weight of the dense layer that reads the first one.

    Raises:
        InputError: If there is none.
    """
    names = [n for n in arrays if n.endswith("weight") and arrays[n].ndim >= 2]
    after = names[names.index(weight) + 1 :]
    width = len(arrays[weight])
    if not after or arrays[after[0]].ndim != 2 or arrays[after[0]].shape[1] != width:
        raise InputError(
            "model",
            after[0] if after else weight,
            "the first dense layer is not followed by a dense layer of its width",
            "Use the model 'mlp' with a hidden layer, or 'imprint' in front of another model.",
        )
    return after[0]


def _is_last(arrays: Arrays, layer: str) -> bool:
    names = [n for n in arrays if n.endswith("weight")]
    return names[-1] == layer


def batch_size(seen: Observed) -> int | None:
    """Records behind an update, if the adversary knows: a client says how many it used."""
    if seen.num_examples is not None:
        return max(1, round(seen.num_examples))
    if seen.local is not None and seen.local.algorithm == "fedsgd":
        return seen.local.batch_size
    return None


def local_steps(seen: Observed) -> int | None:
    """Gradient steps behind an update, if the adversary knows."""
    batch = batch_size(seen)
    return None if seen.local is None or batch is None else seen.local.steps(batch)

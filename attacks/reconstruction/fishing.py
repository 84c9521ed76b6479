"""Fishing: the model that a client receives lets one record of its batch through.

*Class cut*: in the last layer, all classes but one have zero weights and a large bias. A record of
another class is then nothing to the layers below: they get no gradient from it. A record of the
fished class gives all of its gradient. *Feature cut*: only one hidden neuron leads to the fished
class, and its bias is such that few records fire it. What is left of an average over the batch is
the gradient of the records that pass both; if it is one, its input is found in closed form.

Written here for models of two dense layers: the neuron that cuts is in the first of them. Any other
model that ends in a dense layer is fished by that layer alone (`fishing_layer`), and the record is
searched (`fishing_search`).

References:
    Wen et al., "Fishing for user data in large-batch federated learning via gradient
    magnification", ICML 2022. https://arxiv.org/abs/2202.00580
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from attacks.federated.traps import trap_layer
from attacks.reconstruction.fishing_search import Catch, FishingSettings, land
from attacks.reconstruction.linear import invert_linear, rank_one_residual
from attacks.reconstruction.observed import Observed, observed
from attacks.reconstruction.planted import batch_size, next_layer
from fl_audit.attack_spec import (
    AttackInput,
    AttackSpec,
    Reconstruction,
    Reconstructions,
    Tried,
)
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from fl_audit.records import Records
from fl_audit.threat_model import Observation

Matrix = NDArray[np.float64]
_MARGIN = 60.0  # logits between the fished class and the others: e^-60 is nothing in float32
_MOST_UNEXPLAINED = 0.01  # share of the gradient's norm that one record may leave unexplained


@dataclass(frozen=True, slots=True)
class Cut:
    """What a fishing model lets through.

    Attributes:
        label: The fished class.
        neuron: The only neuron of the first layer that leads to it.
    """

    label: int
    neuron: int


def fish(arrays: Arrays, proxy: Records, cut: Cut, batch: int) -> dict[str, NDArray[np.generic]]:
    """A model that lets about one record of a batch through.

    Args:
        arrays: A model of two dense layers, by name; not modified.
        proxy: Records like the clients': the neuron's cut is a quantile of those of the class.
        cut: The class, and the neuron that picks among its records.
        batch: Records in a client's batch.

    Returns:
        All arrays, of the same dtypes.

    Raises:
        InputError: If the model has other layers, there is no such class, or no record of it.
    """
    weight, bias = trap_layer(arrays)
    last, last_bias = _last_layer(arrays, weight)
    if not 0 <= cut.label < len(arrays[last]):
        raise InputError(
            "fished class",
            cut.label,
            f"the model has classes 0 to {len(arrays[last]) - 1}",
            "Name one.",
        )
    own = np.flatnonzero(proxy.labels == cut.label)
    if not len(own):
        raise InputError(
            "fished class",
            cut.label,
            "none of the auxiliary records has it, so there is no quantile to cut at",
            "Give the adversary more records: [game] auxiliary = 1000.",
        )
    changed = {name: np.array(array) for name, array in arrays.items()}
    row = changed[weight][cut.neuron].astype(np.float64)
    inputs = np.asarray(proxy.take(own).inputs[:]).reshape(len(own), -1).astype(np.float64)
    expected = batch * len(own) / len(proxy)  # records of the class in a batch
    share = min(1.0, 1.0 / expected)
    answers = inputs @ row
    edge = np.quantile(answers, 1 - share) if share < 1 else answers.min() - np.ptp(answers)
    changed[bias][cut.neuron] = -edge
    changed[last][:] = 0.0
    reach = float(np.abs(inputs @ row - edge).max()) or 1.0
    size = float(np.abs(np.asarray(arrays[last])).mean()) or 1.0
    # never so large that a firing neuron lifts the class: the margin must hold
    changed[last][cut.label, cut.neuron] = min(size, _MARGIN / (4 * reach))
    changed[last_bias][:] = _MARGIN
    changed[last_bias][cut.label] = 0.0
    return changed


def read_cut(sent: Arrays) -> Cut | None:
    """What a model lets through, by its last layer; None if it is no fishing model."""
    weight, _ = trap_layer(sent)
    last, _ = _last_layer(sent, weight)
    labels, neurons = np.nonzero(np.asarray(sent[last]))
    return Cut(int(labels[0]), int(neurons[0])) if len(labels) == 1 else None


def alone(passing: float, batch: int) -> float:
    """Probability that exactly one record of a batch passes.

    Args:
        passing: Probability that a record passes the cuts.
    """
    return float(batch * passing * (1 - passing) ** (batch - 1))


def passes(sent: Arrays, cut: Cut, records: Records) -> NDArray[np.bool_]:
    """Which records have the class and fire the neuron, shape (n,)."""
    weight, bias = trap_layer(sent)
    inputs = np.asarray(records.inputs[:]).reshape(len(records), -1).astype(np.float64)
    row = np.asarray(sent[weight])[cut.neuron].astype(np.float64)
    fired = inputs @ row + float(np.asarray(sent[bias])[cut.neuron]) > 0
    result: NDArray[np.bool_] = fired & (records.labels == cut.label)
    return result


def is_two_dense(arrays: Arrays) -> bool:
    """Whether the closed form applies: a dense layer with a bias, then another, and no more."""
    layers = [n for n in arrays if n.endswith("weight")]
    shapes = [arrays[name].shape for name in layers]
    biases = all(n.removesuffix("weight") + "bias" in arrays for n in layers)
    return (
        len(layers) == 2
        and all(len(shape) == 2 for shape in shapes)
        and shapes[1][1] == shapes[0][0]
        and biases
    )


def _last_layer(arrays: Arrays, first: str) -> tuple[str, str]:
    out = next_layer(arrays, first)
    bias = out.removesuffix("weight") + "bias"
    names = [n for n in arrays if n.endswith("weight")]
    if names[-1] != out or bias not in arrays:
        raise InputError(
            "model",
            names,
            "fishing is written for two dense layers with biases",
            'Use the model "mlp" with one hidden layer, or plant an imprint.',
        )
    return out, bias


@dataclass(slots=True, eq=False)
class _Tally:
    """What became of all updates.

    Attributes:
        shares: Of the batch that comes back in closed form, where the number of records that
            passed is known: 0 unless one did.
        tried: Updates that were looked at, but for those that wait for a search.
    """

    catches: list[Catch] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    searched: int = 0


def _run(given: AttackInput) -> Reconstructions:
    settings: FishingSettings = given.settings
    tally = _Tally()
    for seen in observed(given, "clients"):
        if not _is_tampered(given, seen):
            continue
        if is_two_dense(seen.model):
            catch = _take_closed(given, seen, tally.shares)
        else:
            module = given.view.architecture()
            catch = land(given, seen, module, may_search=tally.searched < settings.most_searches)
            tally.searched += catch is not None and catch.fate in ("one", "unsolved")
        if catch is not None:
            tally.catches.append(catch)
            tally.tried += [] if catch.fate == "waiting" else [seen.tried]
    if not tally.catches:
        raise InputError(
            "received models",
            "none",
            "no client received a planted model that lets one class through",
            'Run the federation with [adversary] name = "fishing".',
        )
    claims = tuple(each.claim for each in tally.catches if each.claim is not None)
    expected = {"recovered": float(np.mean(tally.shares))} if tally.shares else {}
    return Reconstructions(claims, _notes(given, tally), expected, tried=tuple(tally.tried))


def _take_closed(given: AttackInput, seen: Observed, shares: list[float]) -> Catch | None:
    """What came of one update in closed form; None if its model lets more than one class through.

    Args:
        shares: Where to put the share of the batch that must have come back, if it is known.
    """
    cut = read_cut(seen.model)
    if cut is None:
        return None
    batch, chance, passed = batch_size(seen), _chance(given, seen, cut), num_passed(seen, cut)
    weight, bias = trap_layer(seen.model)
    row, signal = seen.update[weight], seen.update[bias]
    if batch is not None and passed is not None:
        shares.append(1 / batch if passed == 1 else 0.0)
    if not signal.any():
        return Catch("empty", chance, is_counted=passed is not None)
    record = invert_linear(row, signal)
    is_one = rank_one_residual(row, signal, record) <= _MOST_UNEXPLAINED
    if not is_one or _is_mixture(given, record) or (passed or 1) > 1:
        return Catch("mixed", chance, is_counted=passed is not None)
    shape = (-1,) if given.auxiliary is None else given.auxiliary.input_shape
    label = np.array([cut.label], dtype=np.int64)
    claim = Reconstruction(seen.round, seen.client, record.reshape(1, *shape), labels=label)
    return Catch("one", chance, is_counted=passed is not None, claim=claim)


def _chance(given: AttackInput, seen: Observed, cut: Cut) -> float | None:
    """Probability that exactly one record of the batch passes, by the adversary's own records."""
    batch = batch_size(seen)
    if batch is None or given.auxiliary is None or not len(given.auxiliary):
        return None
    return alone(float(passes(seen.model, cut, given.auxiliary).mean()), batch)


def _is_tampered(given: AttackInput, seen: Observed) -> bool:
    honest = given.view.global_model(seen.round)
    return any((np.asarray(seen.model[n]) != np.asarray(honest[n])).any() for n in honest)


def num_passed(seen: Observed, cut: Cut) -> int | None:
    """How many records are in an update, by its size: each has the signal of the sent weight.

    Returns:
        None if the learning rate or the batch is not known, or there were several steps.
    """
    batch, local = batch_size(seen), seen.local
    if batch is None or local is None or local.steps(batch) != 1:
        return None
    weight, bias = trap_layer(seen.model)
    last, _ = _last_layer(seen.model, weight)
    each = float(np.asarray(seen.model[last])[cut.label, cut.neuron])
    moved = float(seen.update[bias][cut.neuron])
    return round(abs(moved / each) * batch / local.learning_rate_in(seen.round))


def _is_mixture(given: AttackInput, record: Matrix) -> bool:
    """Whether no record could be this: outside of what the adversary's own records hold."""
    if given.auxiliary is None or not len(given.auxiliary):
        return False
    known = np.asarray(given.auxiliary.inputs[:])
    low, high = float(known.min()), float(known.max())
    slack = 0.01 * (high - low)
    return bool(((record < low - slack) | (record > high + slack)).any())


def _notes(given: AttackInput, tally: _Tally) -> tuple[str, ...]:
    catches = tally.catches
    fates = Counter(each.fate for each in catches)
    single = fates["one"] + fates["unsolved"] + fates["waiting"]
    notes = [
        f"{len(catches)} updates are of clients that received a model that lets one class through, "
        f"and few records of it: {fates['empty']} hold no record, {fates['mixed']} several (or one "
        f"of another class), and {single} one.",
    ]
    if fates["steps"]:
        notes.append(f"{fates['steps']} took several local steps: their records are not alone.")
    if fates["waiting"]:
        notes.append(f"{fates['waiting']} records were not searched: raise most_searches.")
    if fates["unsolved"]:
        notes.append(
            f"{fates['unsolved']} searches ended without a claim: what was found explains the "
            "gradient hardly better than the server's own records do."
        )
    if not all(each.is_counted for each in catches if each.fate != "steps"):
        notes.append(
            "How many passed is told from the size of the update where learning rate and batch are "
            "known; elsewhere an average of several may look like one record."
        )
    chances = [each.chance for each in catches if each.chance is not None]
    if chances:
        notes.append(
            f"By the server's own records, exactly one passes with probability "
            f"{np.mean(chances):.2f}."
        )
    return (*notes, *given.view.unusable)


ATTACK = AttackSpec(
    name="fishing",
    kind="reconstruction",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    run=_run,
    reference="https://arxiv.org/abs/2202.00580",
    summary="A model that lets one record of a batch through: its gradient is that record's",
    settings=FishingSettings,
    activity="malicious",
)

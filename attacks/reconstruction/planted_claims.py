"""From records that were read out of planted rows to claims, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attacks.reconstruction.peeling import Peeled
from attacks.reconstruction.planted import Planted
from fl_audit.attack_spec import AttackInput, Reconstruction
from fl_audit.threat_model import Knowledge

Matrix = NDArray[np.float64]


def input_bounds(given: AttackInput, size: int) -> tuple[Matrix, Matrix]:
    """Smallest and largest value of each input, by the adversary's own records; or none."""
    if given.auxiliary is None or not len(given.auxiliary):
        return np.full(size, -np.inf), np.full(size, np.inf)
    known = np.asarray(given.auxiliary.inputs[:]).reshape(len(given.auxiliary), -1)
    low, high = float(known.min()), float(known.max())
    return np.full(size, low), np.full(size, high)


def claim(planted: Planted, found: Peeled, given: AttackInput) -> Reconstruction:
    """One update's records: the most agreed upon first, and no more than the batch holds."""
    order = np.argsort(-found.votes, kind="stable")[: planted.batch]
    shape = None if given.auxiliary is None else given.auxiliary.input_shape
    records = found.records[order].reshape(len(order), *(shape or (-1,)))
    sure = 1 - 0.5 ** found.votes[order].astype(np.float64)
    return Reconstruction(
        planted.seen.round,
        planted.seen.client,
        records,
        confidence=sure.reshape(len(order), *([1] * (records.ndim - 1))),
    )


def planted_notes(
    claims: Sequence[Reconstruction], silent: int, given: AttackInput
) -> tuple[str, ...]:
    """How much was found, and what makes it less than it could be."""
    total = sum(0 if c.inputs is None else len(c.inputs) for c in claims)
    notes = [f"{total} records were read out of {len(claims)} updates."]
    if silent:
        notes.append(f"{silent} updates held no record that could be told from a mixture or noise.")
    if given.auxiliary is None:
        notes.append("Without auxiliary records, mixtures that no record could be are not dropped.")
    if Knowledge.LOCAL_TRAINING in given.view.threat_model.knows:
        several = [c for c in claims if _steps(given, c.client) > 1]
        if several:
            notes.append(
                f"{len(several)} of these clients took several local steps: their rows changed on "
                "the way, and what is read out of them is rough."
            )
    return (*notes, *given.view.unusable)

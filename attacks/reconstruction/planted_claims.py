"""From records that were read out of planted rows to claims, with what a reader must know."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from attacks.reconstruction.peeling import Peeled
from attacks.reconstruction.planted import Planted, planted_updates
from fl_audit.attack_spec import AttackInput, Reconstruction, Reconstructions

Matrix = NDArray[np.float64]
Read = Callable[[Planted], Peeled]


def input_bounds(given: AttackInput, size: int) -> tuple[Matrix, Matrix]:
    """Smallest and largest value of each input, by the adversary's own records; or none."""
    known = _own_records(given)
    if not known.size:
        return np.full(size, -np.inf), np.full(size, np.inf)
    low, high = float(known.min()), float(known.max())
    return np.full(size, low), np.full(size, high)


def claim(planted: Planted, found: Peeled, given: AttackInput) -> Reconstruction:
    """One update's records: the most agreed upon first, and no more than the batch holds."""
    order = np.argsort(-found.votes, kind="stable")[: planted.batch]
    shape = None if given.auxiliary is None else given.auxiliary.input_shape
    records = found.records[order].reshape(len(order), *(shape or (-1,)))
    return Reconstruction(planted.seen.round, planted.seen.client, records)


def run_planted(
    given: AttackInput, remedy: str, read: Read, expect: Callable[[Planted, Matrix], float | None]
) -> Reconstructions:
    """Read out every update of a client that received planted rows.

    Args:
        remedy: Which server plants them, for an error's last sentence.
        read: Records from one update.
        expect: Share of a batch that theory expects back of any update, given the adversary's own
            records (m, d), of which there may be none; None where it says nothing. Asked where the
            batch is known and was one step.

    Raises:
        InputError: If no client received a planted model.
    """
    proxy = _own_records(given)
    claims, tried, shares, silent, rough, firm = [], [], [], 0, 0, 0
    for planted in planted_updates(given, remedy):
        found = read(planted)
        tried.append(planted.seen.tried)
        is_rough = planted.steps is not None and planted.steps > 1
        if planted.batch is not None and not is_rough:  # theory is about one gradient
            share = expect(planted, proxy)  # of updates that gave nothing, too
            shares += [] if share is None else [share]
        if not len(found.records):
            silent += 1
            continue
        claims.append(claim(planted, found, given))
        firm += int((found.votes > 1).sum())
        rough += is_rough
    expected = {"recovered": float(np.mean(shares))} if shares else {}
    notes = _notes(claims, given, silent=silent, rough=rough, firm=firm)
    return Reconstructions(tuple(claims), notes, expected, tried=tuple(tried))


def _own_records(given: AttackInput) -> Matrix:
    """Flattened, shape (m, d); (0, 0) if there are none."""
    if given.auxiliary is None or not len(given.auxiliary):
        return np.empty((0, 0))
    records: Matrix = np.asarray(given.auxiliary.inputs[:], dtype=np.float64)
    return records.reshape(len(records), -1)


def _notes(
    claims: Sequence[Reconstruction], given: AttackInput, *, silent: int, rough: int, firm: int
) -> tuple[str, ...]:
    """How much was found, and what makes it less than it could be."""
    total = sum(0 if c.inputs is None else len(c.inputs) for c in claims)
    notes = [
        f"{total} records were read out of {len(claims)} updates; {firm} of those found are "
        "confirmed by a second row."
    ]
    if silent:
        notes.append(f"{silent} updates held no record that could be told from a mixture or noise.")
    if given.auxiliary is None:
        notes.append("Without auxiliary records, impossible mixtures are not dropped.")
    if rough:
        notes.append(
            f"{rough} of these updates are of several local steps: their rows changed on the way, "
            "and what is read out of them is rough."
        )
    return (*notes, *given.view.unusable)

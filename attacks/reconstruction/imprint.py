"""Imprint, read out: records from the bins of rows that a malicious server planted.

The attack finds the rows itself: first-layer neurons that differ between the model that a client
received and the global model, and that measure the same. It needs no setting of the server's. Where
rows measure in several directions, records are peeled: one that is alone in one direction's bin is
taken out of the others', and what it shared a bin with comes next.

References:
    Fowl et al., "Robbing the Fed", ICLR 2022. https://arxiv.org/abs/2110.13057
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attacks.reconstruction.expected import mean_share, share_by_peeling
from attacks.reconstruction.imprint_bins import Imprint, alone, bin_of, bin_sums, parallel_groups
from attacks.reconstruction.observed import UpdateSettings
from attacks.reconstruction.peeling import Peeled, peel
from attacks.reconstruction.planted import Planted, planted_updates, signal_unit
from attacks.reconstruction.planted_claims import claim, input_bounds, planted_notes
from fl_audit.attack_spec import AttackInput, AttackSpec, Reconstructions
from fl_audit.errors import InputError
from fl_audit.threat_model import Observation

Matrix = NDArray[np.float64]
_REMEDY = 'Run the federation with [adversary] name = "imprint".'


def read_imprints(
    rows: Matrix,
    biases: Matrix,
    sums: Matrix,
    rounding: Matrix,
    *,
    bounds: tuple[Matrix, Matrix],
    equal: bool,
    rng: np.random.Generator,
) -> tuple[Peeled, list[Imprint]]:
    """Records from the change of imprint rows.

    Args:
        rows: Planted weights, shape (r, d); those that measure the same belong together.
        biases: Shape (r,).
        sums: Change of (row, bias) by an update or a gradient, shape (r, d + 1).
        rounding: Variance of one entry that float32 explains, shape (r,).
        bounds: Smallest and largest value of each input, shape (d,) each.
        equal: Whether signals of all records have one size.
        rng: For the comparison of bins.

    Returns:
        The records, and the imprints that were found.

    Raises:
        InputError: If no two rows measure the same.
    """
    groups = parallel_groups(rows)
    if not groups:
        raise InputError(
            "planted rows", len(rows), "no two of them measure the same: this is no imprint", _REMEDY
        )
    found = [bin_sums(rows[own], biases[own], sums[own], rounding[own]) for own in groups]
    imprints = [imprint for imprint, _, _ in found]
    bins = np.vstack([own for _, own, _ in found])
    variance = np.concatenate([own for _, _, own in found])
    counts = [len(own) for _, own, _ in found]

    def belongs(records: Matrix) -> NDArray[np.bool_]:
        own = [bin_of(i, records, n) for i, n in zip(imprints, counts, strict=True)]
        return np.hstack(own)

    unit = signal_unit(bins, variance, bounds) if equal else None
    families = np.repeat(np.arange(len(counts)), counts)
    found_records = peel(
        bins, variance, belongs, bounds=bounds, unit=unit, families=families, rng=rng
    )
    return found_records, imprints


def expected_share(
    imprints: Sequence[Imprint],
    bins: Sequence[int],
    batch: int,
    proxy: Matrix | None,
    *,
    rng: np.random.Generator,
) -> float | None:
    """Share of a batch that theory expects back.

    One imprint: the probability of being alone in one of equally likely bins. Several: by drawing
    batches of the server's own records, None without them.
    """
    if len(imprints) == 1:
        return alone(batch, bins[0])
    if proxy is None or len(proxy) < batch:
        return None
    fired = np.hstack([bin_of(i, proxy, n) for i, n in zip(imprints, bins, strict=True)])
    return share_by_peeling(fired, batch, rng=rng)


def _run(given: AttackInput) -> Reconstructions:
    claims, expected, silent = [], [], 0
    proxy = None
    if given.auxiliary is not None:
        proxy = np.asarray(given.auxiliary.inputs[:]).reshape(len(given.auxiliary), -1)
    for planted in planted_updates(given, _REMEDY):
        found, imprints = _read(planted, given)
        if planted.batch is not None:
            bins = [len(own) for own in parallel_groups(planted.rows)]
            share = expected_share(imprints, bins, planted.batch, proxy, rng=given.rng)
            expected += [] if share is None else [share]
        if len(found.records):
            claims.append(claim(planted, found, given))
        else:
            silent += 1
    notes = planted_notes(claims, silent, given)
    return Reconstructions(tuple(claims), notes, mean_share(expected))


def _read(planted: Planted, given: AttackInput) -> tuple[Peeled, list[Imprint]]:
    return read_imprints(
        planted.rows,
        planted.biases,
        planted.sums,
        planted.rounding,
        bounds=input_bounds(given, planted.rows.shape[1]),
        equal=planted.equal,
        rng=given.rng,
    )


ATTACK = AttackSpec(
    name="imprint",
    kind="reconstruction",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    run=_run,
    reference="https://arxiv.org/abs/2110.13057",
    summary="Planted rows sort records into bins: those alone in one come back",
    settings=UpdateSettings,
    activity="malicious",
)

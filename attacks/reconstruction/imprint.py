"""Imprint, read out: records from the bins of rows that a malicious server planted.

The attack finds the rows itself: first-layer neurons that differ between the model that a client
received and the global model, and that measure the same. It needs no setting of the server's. Where
rows measure in several directions, records are peeled: one that is alone in one direction's bin is
taken out of the others', and what it shared a bin with comes next.

References:
    Fowl et al., "Robbing the Fed", ICLR 2022. https://arxiv.org/abs/2110.13057
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.reconstruction.expected import share_by_peeling
from attacks.reconstruction.imprint_bins import alone, bin_of, bin_sums, imprint_of, parallel_groups
from attacks.reconstruction.observed import UpdateSettings
from attacks.reconstruction.peeling import Peeled, peel
from attacks.reconstruction.planted import Planted, signal_unit
from attacks.reconstruction.planted_claims import input_bounds, run_planted
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
) -> Peeled:
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
        The records.

    Raises:
        InputError: If no two rows measure the same.
    """
    groups = parallel_groups(rows)
    if not groups:
        raise InputError(
            "planted rows",
            len(rows),
            "no two of them measure the same: this is no imprint",
            _REMEDY,
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
    return peel(bins, variance, belongs, bounds=bounds, unit=unit, families=families, rng=rng)


def expected_share(
    rows: Matrix,
    biases: Matrix,
    batch: int,
    proxy: Matrix,
    *,
    equal: bool,
    rng: np.random.Generator,
) -> float | None:
    """Share of a batch that theory expects back.

    One imprint: the probability of being alone in one of equally likely bins. Several: by drawing
    batches of the server's own records `proxy` (m, d); None if there are fewer than a batch.
    """
    groups = parallel_groups(rows)
    if len(groups) == 1:
        return alone(batch, len(groups[0]))
    if len(proxy) < batch:
        return None
    layers = [imprint_of(rows[own], biases[own]) for own in groups]
    fired = [bin_of(i, proxy, len(own)) for i, own in zip(layers, groups, strict=True)]
    return share_by_peeling(np.hstack(fired), batch, equal=equal, rng=rng)


def _run(given: AttackInput) -> Reconstructions:
    def read(planted: Planted) -> Peeled:
        return read_imprints(
            planted.rows,
            planted.biases,
            planted.sums,
            planted.rounding,
            bounds=input_bounds(given, planted.rows.shape[1]),
            equal=planted.equal,
            rng=given.rng,
        )

    def expect(planted: Planted, proxy: Matrix) -> float | None:
        assert planted.batch is not None  # only asked then
        return expected_share(
            planted.rows, planted.biases, planted.batch, proxy, equal=planted.equal, rng=given.rng
        )

    return run_planted(given, _REMEDY, read, expect)


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

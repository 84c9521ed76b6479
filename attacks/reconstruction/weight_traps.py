"""Weight traps: random rows that so few records of a batch fire that some fire one alone.

*Trap weights* (Boenisch et al.): half of a row's weights are negative, the other half the same
sizes times `scale` < 1. Inputs in [0, 1] rarely get above 0. They fail on normalised inputs.
*Quantile traps* (Nowak et al.): random rows, and as bias the quantile of each row's answer to
records of the server's own: one in B fires it. They do not depend on how inputs are scaled.

Ours spread the quantiles by default: rows that fire rarely give the first records, and rows that
fire often give the others, once the first are taken out of them.

References:
    Boenisch et al., "When the curious abandon honesty", 2021. https://arxiv.org/abs/2112.02918
    Nowak et al., "QBI: quantile-based bias initialization", 2024. https://arxiv.org/abs/2406.18745
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.reconstruction.expected import share_by_peeling
from attacks.reconstruction.imprint_bins import parallel_groups
from attacks.reconstruction.observed import UpdateSettings
from attacks.reconstruction.peeling import Peeled, peel
from attacks.reconstruction.planted import Planted, quiet_variance, signal_unit
from attacks.reconstruction.planted_claims import input_bounds, run_planted
from fl_audit.attack_spec import AttackInput, AttackSpec, Reconstructions
from fl_audit.errors import InputError
from fl_audit.threat_model import Observation

Matrix = NDArray[np.float64]
_REMEDY = 'Run the federation with [adversary] name = "quantile_traps" or "trap_weights".'
_RAREST, _OFTEN = 0.5, 0.3  # firing shares: so many records of a batch, and a share of all
_SILENT = 100  # one row in so many fires for nothing, and tells how loud noise is
_BLOCK = 2000  # records at a time


def trap_rows(
    num: int, size: int, *, scale: float = 0.97, rng: np.random.Generator
) -> tuple[Matrix, Matrix]:
    """Trap weights.

    Args:
        num: Rows, r.
        size: Inputs, d.
        scale: Size of positive weights in terms of negative ones, in (0, 1].

    Returns:
        Weights (r, d), of about unit norm, and biases (r,) of 0.
    """
    half = size // 2
    rows = np.zeros((num, size))
    for row in rows:
        places = rng.permutation(size)
        sizes = np.abs(rng.normal(size=half))
        row[places[:half]] = -sizes
        row[places[half : 2 * half]] = scale * sizes
    return rows / np.sqrt(size), np.zeros(num)


def quantile_rows(
    num: int,
    proxy: Matrix,
    batch: int,
    *,
    spread: bool = True,
    rng: np.random.Generator,
) -> tuple[Matrix, Matrix]:
    """Quantile traps.

    Args:
        num: Rows, r.
        proxy: Records like the clients', shape (m, d), m >= 2.
        batch: Records in a client's batch, B.
        spread: Rows fire for shares from 1/(2B) to 0.3 of all records, in equal ratios, and a few
            for none; False: for 1/B each, as published.

    Returns:
        Weights (r, d), of about unit norm, and biases (r,).

    Raises:
        InputError: If there are too few records.
    """
    if len(proxy) < 2:
        raise InputError(
            "auxiliary records",
            len(proxy),
            "quantiles need at least 2 records like the clients'",
            "Give the adversary some: [game] auxiliary = 1000.",
        )
    rows = rng.normal(size=(num, proxy.shape[1])) / np.sqrt(proxy.shape[1])
    shares = np.full(num, 1 / batch)
    if spread:
        rarest, often = _RAREST / batch, max(_OFTEN, 1 / batch)
        shares = rarest * (often / rarest) ** ((np.arange(num) + 0.5) / num)
    answers = np.concatenate(
        [proxy[start : start + _BLOCK] @ rows.T for start in range(0, len(proxy), _BLOCK)]
    )
    biases = np.empty(num)
    for place in range(num):
        biases[place] = -np.quantile(answers[:, place], 1 - shares[place])
    if spread:
        silent = np.arange(0, num, _SILENT)
        biases[silent] = -answers[:, silent].max(axis=0) - np.ptp(answers[:, silent], axis=0)
    return rows, biases


def read_traps(
    rows: Matrix,
    biases: Matrix,
    sums: Matrix,
    rounding: Matrix,
    *,
    bounds: tuple[Matrix, Matrix],
    equal: bool,
    rng: np.random.Generator,
) -> Peeled:
    """Records from the change of trap rows, all of which share their outgoing weights.

    Args:
        rows: Planted weights, shape (r, d).
        biases: Shape (r,).
        sums: Change of (row, bias) by an update or a gradient, shape (r, d + 1).
        rounding: Variance of one entry that float32 explains, shape (r,).
        bounds: Smallest and largest value of each input, shape (d,) each.
        equal: Whether signals of all records have one size.
        rng: For the comparison of rows.
    """
    noise = quiet_variance(np.einsum("rd,rd->r", sums, sums), sums.shape[1])
    variance = np.maximum(noise, rounding)
    unit = signal_unit(sums, variance, bounds) if equal else None
    return peel(
        sums,
        variance,
        lambda records: fires(rows, biases, records),
        bounds=bounds,
        unit=unit,
        rng=rng,
    )


def fires(rows: Matrix, biases: Matrix, records: Matrix) -> NDArray[np.bool_]:
    """Which rows fire for which records (n, d), shape (n, r)."""
    result: NDArray[np.bool_] = records @ rows.T + biases > 0
    return result


def _run(given: AttackInput) -> Reconstructions:
    def read(planted: Planted) -> Peeled:
        if parallel_groups(planted.rows):
            raise InputError(
                "planted rows",
                len(planted.rows),
                "some of them measure the same: these are no traps",
                'Use the attack "imprint".',
            )
        return read_traps(
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
        if len(proxy) < planted.batch:
            return None
        fired = fires(planted.rows, planted.biases, proxy)
        return share_by_peeling(fired, planted.batch, equal=planted.equal, rng=given.rng)

    return run_planted(given, _REMEDY, read, expect)


ATTACK = AttackSpec(
    name="weight_traps",
    kind="reconstruction",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    run=_run,
    reference="https://arxiv.org/abs/2406.18745",
    summary="Planted rows that few records fire give back those that fire one alone, then more",
    settings=UpdateSettings,
    activity="malicious",
)

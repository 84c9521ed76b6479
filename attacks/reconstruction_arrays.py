"""The arrays of a reconstruction result, as they are written to its file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attacks.reconstruction_measures import Compared, guess
from fl_audit.attack_spec import Reconstruction, Reconstructions
from fl_audit.records import Records


def place_of(claim: Reconstruction) -> str:
    """Where a claim's arrays stand in the file of a result."""
    who = "sum" if claim.client == -1 else f"client_{claim.client}"
    return f"round_{claim.round:04d}/{who}"


def shown_arrays(
    output: Reconstructions, compared: Sequence[Compared], auxiliary: Records | None
) -> dict[str, NDArray[np.generic]]:
    """What a report shows, by place and name: `round_0001/client_3/reconstruction`.

    Reconstructions, originals in the order of those, labels of both, PSNR and SSIM of each pair or
    which of its values are right, the objective, frames and confidence, where they are known; and
    `baseline`, the usual record.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    known = {place_of(one.claim): one for one in compared}
    for claim in output.targets:
        place = place_of(claim)
        one = known.get(place)
        own = _claim_arrays(claim if one is None else one.claim, one)
        arrays |= {f"{place}/{name}": array for name, array in own.items()}
    if auxiliary is not None and any(claim.inputs is not None for claim in output.targets):
        first = next(claim for claim in output.targets if claim.inputs is not None)
        usual = guess(first, auxiliary, output.contents).inputs
        assert usual is not None  # it says as much as the claim
        arrays["baseline"] = usual[0]
    return arrays


def _claim_arrays(claim: Reconstruction, one: Compared | None) -> dict[str, NDArray[np.generic]]:
    """One claim's arrays. Pairs come first, then what has no partner on the other side."""
    arrays: dict[str, NDArray[np.generic]] = {}
    if claim.inputs is None:
        return arrays
    order = np.arange(len(claim.inputs))
    if one is not None:
        order = _first(one.rows, len(claim.inputs))
        theirs = _first(one.columns, len(one.target.labels))
        arrays["original"] = one.target.inputs[theirs].astype(np.float64)
        arrays["original_labels"] = one.target.labels[theirs]
        rows = {"psnr_db": one.psnr_db, "ssim": one.ssim, "right": one.right}
        arrays |= {name: values for name, values in rows.items() if values is not None}
    arrays["reconstruction"] = claim.inputs[order]
    if claim.labels is not None:
        arrays["labels"] = claim.labels[order]
    if claim.objective is not None:
        arrays["objective"] = claim.objective
    if claim.frames is not None:
        arrays["frames"] = claim.frames[:, order]
    if claim.confidence is not None:
        shared = np.broadcast_to(claim.confidence, claim.inputs.shape)
        arrays["confidence"] = shared[order]
    return arrays


def _first(rows: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    return np.concatenate([rows, np.setdiff1d(np.arange(num), rows)])

"""The scorer: compares what an attack said with the truth, which no attack sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from attacks.decisions import Calibration
from attacks.member_scoring import score_members
from attacks.persons import InRound
from attacks.risk import Access, with_risk
from attacks.rounding import apportion
from fl_audit.attack_spec import (
    AttackOutput,
    MembershipScores,
    Reconstruction,
    Reconstructions,
)
from fl_audit.game import GameTruth, MembershipGame, Target
from fl_audit.records import Records
from fl_audit.results import (
    AttackResult,
    Estimate,
    ReconstructionRecord,
    ReconstructionResult,
)
from fl_audit.stats import (
    mean_ci,
    proportion,
    share_ci,
)

PSNR_CAP = 150.0  # dB: two float64 images that differ by rounding would give any number
EXACT = 1e-6  # largest error of a reconstruction that is called exact
_ENOUGH_TARGETS = 2  # a mean of one has no interval


def score(
    output: AttackOutput,
    header: Mapping[str, Any],
    *,
    game: MembershipGame | None,
    truth: GameTruth | None,
    null: AttackOutput | None = None,
    is_scored: NDArray[np.bool_] | None = None,
    left_out: Mapping[str, int] | None = None,
    in_round: InRound | None = None,
    calibration: Calibration | None = None,
    access: Access = "updates",
) -> AttackResult:
    """Score an attack's output.

    Args:
        output: What the attack said.
        header: The fields that every record shares.
        game: What attackers were shown.
        truth: The truth; without it, scores are kept and no figure is given.
        null: The same attack on the null candidates.
        is_scored: Candidates to compute figures from; all by default.
        left_out: Why members are not among them, and how many for each reason.
        in_round: Candidates to compute a round's figures from; those of `is_scored` by default.
        calibration: A task with a known answer, for thresholds and probabilities.
        access: What the attack's adversary has, for the report.
    """
    if isinstance(output, MembershipScores):
        assert game is not None  # the runner refuses a membership attack without candidates
        null_scores = null.scores if isinstance(null, MembershipScores) else None
        result = score_members(
            output,
            header,
            game=game,
            truth=truth,
            null_scores=null_scores,
            is_scored=is_scored,
            left_out=left_out or {},
            in_round=in_round,
        )
        return with_risk(result, calibration, access)
    assert isinstance(output, Reconstructions)  # estimates: attacks/estimates.py
    return _reconstruction(output, header, game, truth)


def psnr(reconstruction: NDArray[np.float64], original: NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], float64, capped at 150 dB."""
    error = float(np.mean((reconstruction - original) ** 2))
    return PSNR_CAP if error == 0 else min(PSNR_CAP, -10 * float(np.log10(error)))


def _reconstruction(
    output: Reconstructions,
    header: Mapping[str, Any],
    game: MembershipGame | None,
    truth: GameTruth | None,
) -> ReconstructionResult:
    known = {} if truth is None else {(t.round, t.client): t for t in truth.targets}
    scored = [
        (claim, known[claim.round, claim.client])
        for claim in output.targets
        if (claim.round, claim.client) in known
    ]
    auxiliary = None if game is None or not len(game.auxiliary) else game.auxiliary
    guesses = [_guess(claim, auxiliary) for claim, _ in scored]
    metrics, refused = _metrics([(c, t) for c, t in scored])
    baseline: dict[str, Estimate] = {}
    if auxiliary is not None:
        baseline, _ = _metrics([(g, t) for g, (_, t) in zip(guesses, scored, strict=True)])
    arrays = _arrays(output.targets, scored, auxiliary)
    record = ReconstructionRecord(
        **header,
        notes=[*output.notes, *_largest_error(scored)],
        num_targets=len(output.targets),
        metrics=metrics,
        baseline=baseline,
        refused=refused,
        arrays_file=f"{header['label']}.safetensors" if arrays else None,
    )
    return ReconstructionResult(record, arrays)


def _metrics(
    pairs: Sequence[tuple[Reconstruction, Target]],
) -> tuple[dict[str, Estimate], dict[str, str]]:
    metrics: dict[str, Estimate] = {}
    refused: dict[str, str] = {}
    values, errors = [], []
    for claim, target in pairs:
        if claim.inputs is None:
            continue
        matched, original = _match(claim.inputs, target.inputs.astype(np.float64))
        values += [psnr(a, b) for a, b in zip(matched, original, strict=True)]
        errors += [float(np.abs(a - b).max()) for a, b in zip(matched, original, strict=True)]
    if len(values) >= _ENOUGH_TARGETS:
        metrics["psnr_db"] = mean_ci(np.asarray(values), bounds=(-np.inf, PSNR_CAP))
    elif values:
        refused["psnr_db"] = "one record gives no interval for a mean; reconstruct two or more"
    if errors:
        metrics["exact"] = proportion(sum(e < EXACT for e in errors), len(errors))
    overlaps = []
    for claim, target in pairs:
        if claim.label_counts is not None:
            true = np.bincount(target.labels, minlength=len(claim.label_counts))
            overlaps.append(np.minimum(true, claim.label_counts).sum() / len(target.labels))
    if overlaps:  # labels of one batch are found or missed together: an update is one trial
        metrics["label_overlap"] = share_ci(np.asarray(overlaps))
    return metrics, refused


def _largest_error(pairs: Sequence[tuple[Reconstruction, Target]]) -> list[str]:
    errors = []
    for claim, target in pairs:
        if claim.inputs is not None:
            matched, original = _match(claim.inputs, target.inputs.astype(np.float64))
            errors.append(float(np.abs(matched - original).max()))
    return [f"Largest absolute error of any input value: {max(errors):.2g}."] if errors else []


def _match(
    found: NDArray[np.float64], original: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pair reconstructions with originals so that the total squared error is least."""
    flat_a, flat_b = found.reshape(len(found), -1), original.reshape(len(original), -1)
    cost = ((flat_a[:, None] - flat_b[None]) ** 2).sum(-1)
    rows, columns = linear_sum_assignment(cost)
    return flat_a[rows].reshape(-1, *original.shape[1:]), original[columns]


def _guess(claim: Reconstruction, auxiliary: Records | None) -> Reconstruction:
    """What the attacker would say without the update: the mean record, the usual class mix."""
    if auxiliary is None:
        return claim
    inputs = counts = None
    if claim.inputs is not None:
        mean = auxiliary.inputs.mean(axis=0, dtype=np.float64)
        inputs = np.repeat(mean[None], len(claim.inputs), axis=0)
    if claim.label_counts is not None:
        mix = np.bincount(auxiliary.labels, minlength=len(claim.label_counts))
        counts = apportion(mix / mix.sum(), int(claim.label_counts.sum()))
    return Reconstruction(claim.round, claim.client, inputs, counts)


def _arrays(
    claims: Sequence[Reconstruction],
    scored: Sequence[tuple[Reconstruction, Target]],
    auxiliary: Records | None,
) -> dict[str, NDArray[np.generic]]:
    """What a report shows: reconstructions, and originals matched to them where known."""
    arrays: dict[str, NDArray[np.generic]] = {}
    originals = {(c.round, c.client): t for c, t in scored}
    for claim in claims:
        if claim.inputs is None:
            continue
        key = f"round_{claim.round:04d}/client_{claim.client}"
        target = originals.get((claim.round, claim.client))
        found = claim.inputs
        if target is not None:
            found, original = _match(found, target.inputs.astype(np.float64))
            arrays[f"{key}/original"] = original
        arrays[f"{key}/reconstruction"] = found
    if arrays and auxiliary is not None:
        arrays["baseline"] = auxiliary.inputs.mean(axis=0, dtype=np.float64)
    return arrays

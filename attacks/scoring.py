"""The scorer: compares what an attack said with the truth, which no attack sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from attacks.decisions import Calibration
from attacks.risk import Access, with_risk
from attacks.rounding import apportion
from fl_audit.attack_spec import (
    AttackOutput,
    MembershipScores,
    Reconstruction,
    Reconstructions,
    check_member_scores,
)
from fl_audit.errors import InputError
from fl_audit.game import GameTruth, MembershipGame, Target
from fl_audit.records import Records
from fl_audit.results import (
    AttackResult,
    Curve,
    Estimate,
    MembershipMetrics,
    MembershipRecord,
    MembershipResult,
    ReconstructionRecord,
    ReconstructionResult,
)
from fl_audit.stats import (
    UnresolvableFprError,
    auc_ci,
    mean_ci,
    proportion,
    resolving_non_members,
    roc,
    share_ci,
    tpr_at_fpr,
)

FPRS = (0.1, 0.01, 0.001)
PSNR_CAP = 150.0  # dB: two float64 images that differ by rounding would give any number
EXACT = 1e-6  # largest error of a reconstruction that is called exact
_NULL_CONFIDENCE = 0.999
_CURVE_POINTS = 400
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
        calibration: A task with a known answer, for thresholds and probabilities.
        access: What the attack's adversary has, for the report.
    """
    if isinstance(output, MembershipScores):
        assert game is not None  # the runner refuses a membership attack without candidates
        null_scores = null.scores if isinstance(null, MembershipScores) else None
        result = _membership(output, header, game, truth, null_scores, is_scored, left_out or {})
        return with_risk(result, calibration, access)
    return _reconstruction(output, header, game, truth)


def membership_metrics(
    is_member: NDArray[np.bool_], scores: NDArray[np.float64], *, confidence: float = 0.95
) -> MembershipMetrics:
    """AUC and TPR at fixed FPR with intervals; what cannot be resolved is refused, with why."""
    metrics = {"auc": auc_ci(is_member, scores, confidence=confidence)}
    refused = {}
    num_non_members = int((~is_member).sum())
    for fpr in FPRS:
        name = f"tpr@fpr={fpr}"
        try:
            metrics[name] = tpr_at_fpr(is_member, scores, fpr, confidence=confidence)
        except UnresolvableFprError as error:
            refused[name] = str(error)
            continue
        needed = resolving_non_members(fpr, confidence=confidence)
        if num_non_members < needed:
            refused[f"{name} (lower limit)"] = (
                f"{num_non_members} non-members cannot bound it from below; {needed} can"
            )
    curve = roc(is_member, scores)
    keep = _corners(curve.fpr, curve.tpr)
    return MembershipMetrics(
        num_members=int(is_member.sum()),
        num_non_members=num_non_members,
        metrics=metrics,
        refused=refused,
        roc=Curve(fpr=curve.fpr[keep].tolist(), tpr=curve.tpr[keep].tolist()),
    )


def psnr(reconstruction: NDArray[np.float64], original: NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], float64, capped at 150 dB."""
    error = float(np.mean((reconstruction - original) ** 2))
    return PSNR_CAP if error == 0 else min(PSNR_CAP, -10 * float(np.log10(error)))


def _membership(
    output: MembershipScores,
    header: Mapping[str, Any],
    game: MembershipGame,
    truth: GameTruth | None,
    null_scores: NDArray[np.float64] | None,
    is_scored: NDArray[np.bool_] | None,
    left_out: Mapping[str, int],
) -> MembershipResult:
    label = str(header["label"])
    check_member_scores(output.scores, len(game.candidates), label)
    result = null = null_holds = None
    notes = list(output.notes)
    if truth is not None:
        is_scored = np.ones(len(output.scores), np.bool_) if is_scored is None else is_scored
        notes += _left_out(truth.is_member, is_scored, left_out)
        result = membership_metrics(truth.is_member[is_scored], output.scores[is_scored])
        if null_scores is not None:
            # a null that an attack cannot tell apart at all is a null that holds
            check_member_scores(null_scores, len(game.null), label, may_tie=True)
            null = membership_metrics(truth.null_is_member, null_scores)
            wide = auc_ci(truth.null_is_member, null_scores, confidence=_NULL_CONFIDENCE)
            null_holds = wide.low <= 0.5 <= wide.high
    record = MembershipRecord(
        **header,
        notes=notes,
        result=result,
        null=null,
        null_holds=null_holds,
        scores_file=f"{label}.parquet",
    )
    is_member = None if truth is None else truth.is_member
    return MembershipResult(
        record, game.candidates, output.scores, is_member, is_scored, null_scores
    )


def _left_out(
    is_member: NDArray[np.bool_], is_scored: NDArray[np.bool_], reasons: Mapping[str, int]
) -> list[str]:
    """A note on members that no update which counts was made from, and why."""
    members, lost = int(is_member.sum()), sum(reasons.values())
    why = "; ".join(f"{count}: {reason}" for reason, count in reasons.items()) or "none is scored"
    if not (is_member & is_scored).any():
        raise InputError(
            "members",
            f"0 of {members} were used",
            f"no member went into a usable update of the recorded rounds ({why})",
            "Record more rounds, or more of them.",
        )
    if lost:
        return [
            f"{lost} of {members} members were held by clients but went into no update that "
            f"counts ({why}); their groups are left out."
        ]
    return []


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


def _corners(fpr: NDArray[np.float64], tpr: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of a curve's points to keep: those where it turns, fewer of them if it turns often.

    A ROC curve is a staircase, so nothing is lost by leaving out points on a straight run. Of more
    than `_CURVE_POINTS` corners, those at low false-positive rates are kept closer together.
    """
    across, up = np.diff(fpr), np.diff(tpr)
    turns = ~np.isclose(across[:-1] * up[1:], up[:-1] * across[1:], rtol=1e-9, atol=0)
    last = len(fpr) - 1
    corners = np.array([0, *np.flatnonzero(turns) + 1, last], dtype=np.int64)
    if len(corners) <= _CURVE_POINTS:
        return corners
    places = np.geomspace(1, len(corners), _CURVE_POINTS).round().astype(np.int64) - 1
    kept: NDArray[np.int64] = corners[np.unique(np.append(places, len(corners) - 1))]
    return kept

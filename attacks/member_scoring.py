"""Scoring membership: figures of an attack, of its null control, by round and by kind of record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.persons import InRound, Mask, Played, by_person
from fl_audit.attack_spec import MembershipScores, check_member_scores
from fl_audit.errors import InputError
from fl_audit.game import KINDS, NATURAL, GameTruth, MembershipGame
from fl_audit.results import (
    Curve,
    KindSlice,
    MembershipMetrics,
    MembershipRecord,
    MembershipResult,
    RoundLeakage,
)
from fl_audit.stats import UnresolvableFprError, auc_ci, resolving_non_members, roc, tpr_at_fpr

FPRS = (0.1, 0.01, 0.001)
_NULL_CONFIDENCE = 0.999
_CURVE_POINTS = 400
_LEAST_A_SIDE = 2  # records that figures of a part are given for


def score_members(
    output: MembershipScores,
    header: Mapping[str, Any],
    *,
    game: MembershipGame,
    truth: GameTruth | None,
    null_scores: NDArray[np.float64] | None,
    is_scored: Mask | None,
    left_out: Mapping[str, int],
    in_round: InRound | None,
) -> MembershipResult:
    """Compare scores with the truth. The figures are of natural records; canaries stand apart.

    In a game about persons, each person counts once (`attacks.persons`).

    Raises:
        InputError: If scores are no scores, or no member counts.
    """
    label = str(header["label"])
    check_member_scores(output.scores, len(game.candidates), label)
    if null_scores is not None:
        # a null that an attack cannot tell apart at all is a null that holds
        check_member_scores(null_scores, len(game.null), label, may_tie=True)
    scored = np.ones(len(output.scores), np.bool_) if is_scored is None else is_scored
    unit = "record" if game.users is None else "user"
    played = by_person(
        Played(
            game=game,
            truth=truth,
            output=output,
            null_scores=null_scores,
            is_scored=scored,
            in_round=(lambda _: scored) if in_round is None else in_round,
            left_out=left_out,
        )
    )
    natural = _is_kind(played.game.kinds, NATURAL, len(played.is_scored))
    null_natural = _is_kind(played.game.null_kinds, NATURAL, len(played.game.null))
    kept_null = None if played.null_scores is None else played.null_scores[null_natural]
    record = MembershipRecord(
        **header,
        notes=list(played.output.notes),
        result=None,
        null=None,
        null_holds=None,
        unit=unit,
        scores_file=f"{label}.parquet",
    )
    if played.truth is not None:
        record = record.model_copy(update=_figures(played, natural, null_natural))
    return MembershipResult(
        record,
        played.game.candidates,
        played.output.scores,
        None if played.truth is None else played.truth.is_member,
        None if played.truth is None else played.is_scored & natural,
        kept_null,
        kinds=played.game.kinds,
    )


def _figures(played: Played, natural: Mask, null_natural: Mask) -> dict[str, Any]:
    """What a record says once the truth is known."""
    truth, scores = played.truth, played.output.scores
    assert truth is not None
    notes = [*played.output.notes, *_left_out(played)]
    rows = played.is_scored & natural
    if not (truth.is_member & rows).any():
        raise _no_member(played)
    null = holds = None
    if played.null_scores is not None:
        lots, null_scores = truth.null_is_member[null_natural], played.null_scores[null_natural]
        null = membership_metrics(lots, null_scores)
        wide = auc_ci(lots, null_scores, confidence=_NULL_CONFIDENCE)
        holds = wide.low <= 0.5 <= wide.high
    slices, lost = _slices(played)
    return {
        "notes": [*notes, *lost],
        "result": membership_metrics(truth.is_member[rows], scores[rows]),
        "null": null,
        "null_holds": holds,
        "timeline": _timeline(played, natural),
        "slices": slices,
    }


def _timeline(played: Played, natural: Mask) -> list[RoundLeakage]:
    """AUC of what each round alone gives, on natural candidates that count in that round.

    A round with fewer than two members or non-members that count, or in which all of them have
    one score, is left out: it says nothing.
    """
    found = []
    assert played.truth is not None
    for number, scores in sorted(played.output.per_round.items()):
        if scores.shape != played.is_scored.shape or not np.isfinite(scores).all():
            continue
        rows = played.in_round(number) & played.is_scored & natural
        own, member = scores[rows], played.truth.is_member[rows]
        if _has_sides(member) and not (own == own[0]).all():
            found.append(RoundLeakage(round=number, auc=auc_ci(member, own)))
    return found


def _slices(played: Played) -> tuple[dict[str, KindSlice], list[str]]:
    """Figures on each kind of canary, and notes on kinds of which too few count."""
    game, truth = played.game, played.truth
    assert truth is not None
    slices, notes = {}, []
    for kind, name in enumerate(KINDS):
        if kind == NATURAL or game.kinds is None or kind not in game.kinds:
            continue
        rows = played.is_scored & (game.kinds == kind)
        member, scores = truth.is_member[rows], played.output.scores[rows]
        if not _has_sides(member):
            notes.append(f"No figures on {name} canaries: {int(member.sum())} members count.")
            continue
        null = None
        if played.null_scores is not None and game.null_kinds is not None:
            own = game.null_kinds == kind
            lots = truth.null_is_member[own]
            if _has_sides(lots):
                null = membership_metrics(lots, played.null_scores[own])
        slices[name] = KindSlice(result=membership_metrics(member, scores), null=null)
    return slices, notes


def _is_kind(kinds: NDArray[np.int64] | None, kind: int, num: int) -> Mask:
    return np.full(num, kind == NATURAL) if kinds is None else kinds == kind


def _has_sides(member: Mask) -> bool:
    return min(int(member.sum()), int((~member).sum())) >= _LEAST_A_SIDE


def _no_member(played: Played) -> InputError:
    assert played.truth is not None
    value = f"0 of {int(played.truth.is_member.sum())} were used"
    if not played.left_out:  # all went into updates, and are known to the attack, or canaries
        return InputError(
            "members",
            value,
            "no natural member is left to score beside those that the attack learned from",
            "Lower the attack's known_fraction, or ask about more records (game.members).",
        )
    why = "; ".join(f"{count}: {reason}" for reason, count in played.left_out.items())
    return InputError(
        "members",
        value,
        f"no member went into a usable update of the recorded rounds ({why})",
        "Record more rounds, or more of them.",
    )


def _left_out(played: Played) -> list[str]:
    """A note on members that no update which counts was made from, and why."""
    assert played.truth is not None
    members, lost = int(played.truth.is_member.sum()), sum(played.left_out.values())
    if not lost:
        return []
    why = "; ".join(f"{count}: {reason}" for reason, count in played.left_out.items())
    return [
        f"{lost} of {members} members were held by clients but went into no update that "
        f"counts ({why}); their groups are left out."
    ]


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

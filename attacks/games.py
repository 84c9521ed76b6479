"""Whose privacy loss is measured: a model's, an algorithm's, or a record's.

References:
    Ye et al., "Enhanced Membership Inference Attacks against Machine Learning Models", CCS 2022,
    section 3. https://arxiv.org/abs/2111.09679
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.decisions import Calibration
from attacks.member_scoring import FPRS, membership_metrics
from attacks.risk import access_of
from attacks.runner import Runner, unavailable
from fl_audit.errors import AuditError, InputError
from fl_audit.game import GameTruth, MembershipGame
from fl_audit.randomness import derived_rng
from fl_audit.results import (
    AttackResult,
    Estimate,
    ExposedRecord,
    Histogram,
    MembershipMetrics,
    MembershipRecord,
    MembershipResult,
    RiskDetails,
)
from fl_audit.stats import UnresolvableFprError, auc, auc_ci, mean_ci, tpr_at_fpr
from fl_audit.threat_model import Knowledge

Game = Literal["model", "algorithm", "record", "leave-one-out"]
GAMES: dict[Game, str] = {
    "model": "of this model: its members against records it was not trained on",
    "algorithm": "of the training algorithm: averaged over models, each trained on a random half "
    "of the candidates",
    "record": "of single records: over models trained with and without each, the rest at random",
    "leave-one-out": "of single records: over models trained with and without each, all else fixed",
}
_LEAST_TARGETS = 4
_DEFAULT_RECORDS = 3


def play(
    game: Game,
    runner: Runner,
    given: MembershipGame,
    truth: GameTruth,
    *,
    num_targets: int,
    records: Sequence[int] | None,
) -> AttackResult:
    """One attack in a game about many models.

    Args:
        game: Not "model", which the runner plays itself.
        runner: The attack, with its laboratories.
        num_targets: Models that play the target.
        records: Candidates of the leave-one-out game, by id.
    """
    try:
        _check(runner, num_targets)
        if game == "leave-one-out":
            chosen = _chosen(given, truth, records, runner)
            scores, is_member = _leave_one_out(runner, truth, chosen, num_targets)
        else:
            chosen = np.arange(len(given.candidates))
            scores, is_member = _random_halves(runner, num_targets)
        return _result(game, runner, given, scores, is_member, chosen)
    except AuditError as error:
        return unavailable(runner.header(), str(error))


def _random_halves(
    runner: Runner, num_targets: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores (t, n) of candidates under shadow models in the target's place; who is a member."""
    lab = runner.labs["candidates"]
    # Models to compare with are others than those attacked, and the same for each: leaving out one
    # model at a time would pull its records' scores the other way.
    compared = getattr(runner.request.settings, "num_shadow_models", 0)
    inner = _with_models(runner, num_targets + compared)
    shadows = lab.workshop.shadows("online", num_targets + compared)
    scores, members = [], []
    for number in range(num_targets):
        task = replace(
            lab,
            target=shadows[number].target,
            population=lab.population[~shadows[number].trained_on[lab.population]],
            left_out=frozenset(range(num_targets)),
        )
        scores.append(inner.scores(task, f"target {number}"))
        members.append(shadows[number].trained_on[lab.rows])
    return np.stack(scores), np.stack(members)


def _with_models(runner: Runner, num: int) -> Runner:
    """The same attack with so many shadow models, of which the first play targets."""
    request = runner.request
    if not hasattr(request.settings, "num_shadow_models"):
        return runner
    settings = request.settings.model_copy(update={"num_shadow_models": num})
    return replace(runner, request=replace(request, settings=settings))


def _leave_one_out(
    runner: Runner, truth: GameTruth, chosen: NDArray[np.int64], num_targets: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores (2t, r): for each record, t models with it and t without, in turn."""
    lab = runner.labs["candidates"]
    members = np.flatnonzero(truth.is_member)
    columns = []
    for row in chosen:
        rest = members[members != row]
        targets = lab.workshop.targets(rest, np.append(rest, row), num_targets)
        task = replace(lab, rows=lab.rows[[row]])
        columns.append(
            [runner.scores(replace(task, target=target), f"record {row}")[0] for target in targets]
        )
    is_member = np.arange(2 * num_targets) % 2 == 1
    return np.asarray(columns).T, np.repeat(is_member[:, None], len(chosen), axis=1)


def _result(
    game: Game,
    runner: Runner,
    given: MembershipGame,
    scores: NDArray[np.float64],
    is_member: NDArray[np.bool_],
    chosen: NDArray[np.int64],
) -> MembershipResult:
    label = runner.request.label
    ids, labels = given.candidates.ids[chosen], given.candidates.labels[chosen]
    each = _each_record(scores, is_member)
    metrics = (
        _over_models(scores, is_member) if game == "algorithm" else _over_records(scores, is_member)
    )
    order = np.lexsort((ids, -np.nan_to_num(each, nan=-1.0)))
    details = RiskDetails(
        access=access_of(runner.request.spec.requires),
        most_exposed=[
            ExposedRecord(
                id=int(ids[i]),
                label=int(labels[i]),
                score=float(each[i]),
                probability=None,
                is_member=bool(is_member[:, i].any()),
            )
            for i in order[:20]
            if np.isfinite(each[i])
        ],
        per_class=[],
        histogram=_auc_histogram(each),
    )
    record = MembershipRecord(
        **runner.header(),
        notes=[
            f"Over {len(scores)} models: {GAMES[game]}.",
            "Scores of single records are the AUC of the attack over models with and without them; "
            "accuracy is the share of models in which the decision on the record is right.",
        ],
        result=metrics,
        null=None,
        null_holds=None,
        details=details,
        scores_file=f"{label}.parquet",
    )
    candidates = given.candidates.take(chosen)
    return MembershipResult(
        record,
        candidates,
        np.nan_to_num(each, nan=0.5),
        is_member=None,
        is_scored=None,
        null_scores=None,
        accuracy=_accuracy(scores, is_member),
    )


def _accuracy(scores: NDArray[np.float64], is_member: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of models in which the decision on a record is right, (n,).

    The threshold for a model is the one that tells members apart best in all models but it and its
    pair, so that no model sets its own.
    """
    right = np.empty(scores.shape)
    for number in range(len(scores)):
        others = np.arange(len(scores)) // 2 != number // 2
        threshold = Calibration(scores[others].ravel(), is_member[others].ravel())
        right[number] = threshold.called_balanced(scores[number]) == is_member[number]
    shares: NDArray[np.float64] = right.mean(axis=0)
    return shares


def _each_record(scores: NDArray[np.float64], is_member: NDArray[np.bool_]) -> NDArray[np.float64]:
    """AUC of each record over models, (n,); NaN where all models are on one side."""
    found = np.full(scores.shape[1], np.nan)
    for column in range(scores.shape[1]):
        sides = is_member[:, column]
        if sides.any() and not sides.all():
            found[column] = auc(sides, scores[:, column])
    return found


def _over_models(scores: NDArray[np.float64], is_member: NDArray[np.bool_]) -> MembershipMetrics:
    """Means over models, with Student's interval: models are independent, records are not."""
    pooled = membership_metrics(is_member.ravel(), scores.ravel())
    metrics = {"auc": _mean([auc(m, s) for m, s in zip(is_member, scores, strict=True)])}
    refused = {}
    for fpr in FPRS:
        name = f"tpr@fpr={fpr}"
        try:
            values = [tpr_at_fpr(m, s, fpr).value for m, s in zip(is_member, scores, strict=True)]
            metrics[name] = _mean(values)
        except UnresolvableFprError as error:
            refused[name] = str(error)
    return pooled.model_copy(update={"metrics": metrics, "refused": refused})


def _over_records(scores: NDArray[np.float64], is_member: NDArray[np.bool_]) -> MembershipMetrics:
    """The mean over records of each record's AUC; and the most exposed one, Bonferroni-adjusted."""
    each = _each_record(scores, is_member)
    known = np.flatnonzero(np.isfinite(each))
    if known.size == 0:
        raise InputError(
            "num_targets", len(scores), "every record is on one side", "Raise num_targets."
        )
    # over models, left out two at a time: records share them, so they are the independent trials
    pairs = len(scores) // 2
    left = [
        float(
            np.nanmean(
                _each_record(
                    np.delete(scores, [2 * p, 2 * p + 1], 0),
                    np.delete(is_member, [2 * p, 2 * p + 1], 0),
                )
            )
        )
        for p in range(pairs)
    ]
    mean = float(np.nanmean(each))
    pseudo = pairs * mean - (pairs - 1) * np.asarray(left)
    spread = mean_ci(pseudo, bounds=(0.0, 1.0))
    low, high = min(spread.low, mean), max(spread.high, mean)
    if np.ptp(pseudo) == 0:  # no variance says nothing: what so many perfect pairs can prove
        perfect = 0.025 ** (1 / pairs)
        low, high = mean * perfect, 1 - (1 - mean) * perfect
    metrics = {
        "auc": Estimate(value=mean, low=low, high=high, confidence=0.95, n=len(scores)),
    }
    worst = int(known[np.argmax(each[known])])
    wide = auc_ci(is_member[:, worst], scores[:, worst], confidence=1 - 0.05 / known.size)
    metrics["auc_of_most_exposed"] = wide.model_copy(update={"confidence": 0.95})
    pooled = membership_metrics(is_member[:, known].ravel(), scores[:, known].ravel())
    return pooled.model_copy(update={"metrics": metrics, "refused": {}})


def _mean(values: Sequence[float]) -> Estimate:
    return mean_ci(np.asarray(values), bounds=(0.0, 1.0))


def _auc_histogram(each: NDArray[np.float64]) -> Histogram:
    edges = np.linspace(0, 1, 21)
    known = each[np.isfinite(each)]
    shares = np.histogram(known, bins=edges)[0] / max(1, known.size)
    return Histogram(edges=edges.tolist(), members=shares.tolist(), non_members=[0.0] * 20)


def _chosen(
    given: MembershipGame, truth: GameTruth, records: Sequence[int] | None, runner: Runner
) -> NDArray[np.int64]:
    if records is None:
        rng = derived_rng(runner.seed, "leave-one-out")
        members = np.flatnonzero(truth.is_member)
        return np.sort(rng.permutation(members)[:_DEFAULT_RECORDS])
    places = {int(i): row for row, i in enumerate(given.candidates.ids)}
    for wanted in records:
        if wanted not in places:
            raise InputError(
                "records", wanted, "is no candidate of this audit", "Name members by row number."
            )
    return np.asarray([places[wanted] for wanted in records], dtype=np.int64)


def _check(runner: Runner, num_targets: int) -> None:
    spec = runner.request.spec
    if not spec.is_on_model or Knowledge.KNOWN_MEMBERS in spec.knows:
        raise InputError(
            f"attack {runner.request.label!r}",
            spec.name,
            "cannot play this game: it needs known members of one model, or a trace",
            'Use it in the game "model".',
        )
    if getattr(runner.request.settings, "mode", "online") != "online":
        raise InputError(
            f"attack {runner.request.label!r} mode",
            "offline",
            "models of this game are trained on random halves of the candidates",
            'Use mode = "online" in this game.',
        )
    if num_targets < _LEAST_TARGETS or num_targets % 2:
        raise InputError(
            "num_targets", num_targets, f"must be even, at least {_LEAST_TARGETS}", "Use 8."
        )
    if "candidates" not in runner.labs:
        raise InputError("model", None, "this game needs a model to ask", "Use audit_model.")

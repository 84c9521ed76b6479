"""FedMIA: all clients for one. The other clients of a round never saw the target's records.

In each round a statistic of a record is measured at every client: I, minus the loss at the model
it sent back; II, the cosine of its update with the record's descent direction. Clients' data are
disjoint, so those other than the target give the statistic's distribution for non-members: a
normal one, fitted without any shadow model. The score is the target's place in it.

With few clients a variance from m - 1 values is worth little; it is pooled with that of all other
candidates by the empirical Bayes rule for variances (Smyth 2004): a scaled inverse chi-square
prior, fitted to the sample variances, and the posterior mean in place of each.

References:
    Zhu et al., "FedMIA: An effective membership inference attack exploiting 'all for one'
    principle in federated learning", CVPR 2025. https://arxiv.org/abs/2402.06289
    Smyth, "Linear models and empirical Bayes methods", Stat. Appl. Genet. Mol. Biol. 2004, eq. 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Unpack

import numpy as np
from numpy.typing import NDArray
from scipy.special import polygamma
from scipy.stats import norm

from attacks.candidates import require_candidates
from attacks.federated.answers import (
    LayerSettings,
    RoundValues,
    answer,
    average,
    scores_of,
    where,
)
from attacks.federated.rounds import Where, alignments, losses
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView

Statistic = Literal["loss", "cosine"]
Variance = Literal["pooled", "record"]
_LEAST_OTHERS = 2  # a variance needs two values
_FLOOR = 1e-8  # of a variance, as in the paper's code
_OUTLIER = 3.0  # standard deviations above the mean: another client may hold the record, too


class Settings(LayerSettings):
    """Which statistic, and how its spread over the other clients is estimated."""

    statistic: Statistic = "cosine"
    """"loss" is the paper's FedMIA-I, "cosine" its FedMIA-II."""
    variance: Variance = "pooled"
    """"record" takes each record's own, as the paper does; "pooled" shrinks it towards all's."""


def fedmia_scores(
    view: TraceView,
    candidates: Records,
    *,
    statistic: Statistic = "cosine",
    variance: Variance = "pooled",
    asked: NDArray[np.int64] | None = None,
    layers: Sequence[str] | None = None,
    rounds: Sequence[int] | None = None,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Mean over rounds of Phi((statistic of the client - mean of the others) / their deviation).

    Args:
        asked: Client in question for each candidate, shape (n,); None: any client, so the
            largest over clients counts.
        layers, rounds: As for `cosine_scores`.

    Returns:
        Phi - 1, in [-1, 0], shape (n,), so that it keeps its digits near 1; higher = more likely
        a member.

    Raises:
        ObservationError: If the view does not grant the updates.
        InputError: If no round has three clients, or there is no signal.
    """
    settings = Settings(statistic=statistic, variance=variance)
    look = Where(layers=layers, rounds=rounds, source="clients", device=device)
    found = average(_places(view, candidates, settings, **look))
    return answer(found.clients, found.means, asked)


def place_among_others(
    values: NDArray[np.float64], *, variance: Variance = "pooled"
) -> NDArray[np.float64]:
    """Each client's place in the normal distribution of the others' values.

    Args:
        values: Statistic, higher = more likely a member, shape (m, n), m >= 3.

    Returns:
        Phi(z) - 1 = -P(Z > z), shape (m, n).
    """
    scores = np.empty_like(values)
    for row in range(len(values)):
        others = np.delete(values, row, axis=0)
        mean, spread, count = _without_outliers(others)
        if variance == "pooled":
            spread = shrink_variances(spread, count - 1)
        scores[row] = -norm.sf((values[row] - mean) / np.sqrt(spread + _FLOOR))
    return scores


def shrink_variances(
    variances: NDArray[np.float64], degrees: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Posterior means of variances under a scaled inverse chi-square prior fitted to them all.

    Args:
        variances: Sample variances (ddof 1), shape (n,).
        degrees: Their degrees of freedom, shape (n,), at least 1.

    References:
        Smyth 2004, section 6.2: moments of log variances give the prior's degrees and scale.
    """
    known = variances > 0
    if known.sum() < 2:
        return variances
    logs = np.log(variances[known])
    half = degrees[known] / 2
    centred = logs - polygamma(0, half) + np.log(half)
    excess = float(np.var(centred, ddof=1) - np.mean(polygamma(1, half)))
    if excess <= 0:  # all variances are alike, as far as this many values can tell
        return np.full_like(variances, np.exp(np.mean(centred)))
    prior = 2 * _inverse_trigamma(excess)
    scale = np.exp(np.mean(centred) + polygamma(0, prior / 2) - np.log(prior / 2))
    pooled: NDArray[np.float64] = (prior * scale + degrees * variances) / (prior + degrees)
    return pooled


def _inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value, by Newton's method on 1/trigamma (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-10:
            break
    return x


def _without_outliers(
    others: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, variance (ddof 1) and count of each record's values, outliers on the high side left
    out: another client may hold the same record."""
    limit = others.mean(axis=0) + _OUTLIER * others.std(axis=0)
    kept = others <= limit
    count = kept.sum(axis=0).astype(np.float64)
    mean = np.where(kept, others, 0).sum(axis=0) / count
    squares = np.where(kept, np.square(others - mean), 0).sum(axis=0)
    return mean, squares / np.maximum(count - 1, 1), count


def _places(
    view: TraceView, candidates: Records, settings: Settings, **look: Unpack[Where]
) -> Iterator[RoundValues]:
    most = 0
    for number, clients, values in _statistics(view, candidates, settings.statistic, **look):
        most = max(most, len(clients))
        if len(clients) > _LEAST_OTHERS:
            yield number, clients, place_among_others(values, variance=settings.variance)
    if 0 < most <= _LEAST_OTHERS:
        raise InputError(
            "clients",
            most,
            "the other clients of a round are the null, and two of them are the least",
            "Use rounds with three clients or more, or an attack that needs no null: cosine.",
        )


def _statistics(
    view: TraceView, candidates: Records, statistic: Statistic, **look: Unpack[Where]
) -> Iterable[RoundValues]:
    if statistic == "loss":
        for number, clients, values in losses(
            view, candidates, rounds=look["rounds"], device=look["device"]
        ):
            yield number, clients, -values
        return
    for found in alignments(view, candidates, **look):
        yield found.round, found.clients, found.cosines()


def _run(given: AttackInput) -> MembershipScores:
    look, candidates = where(given, "clients"), require_candidates(given)
    found = average(_places(given.view, candidates, given.settings, **look))
    return scores_of(found, given.asked, given.view)


ATTACK = AttackSpec(
    name="fedmia",
    kind="membership",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://arxiv.org/abs/2402.06289",
    summary="The other clients of a round show what the statistic of a non-member looks like",
    settings=Settings,
)

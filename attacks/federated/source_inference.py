"""Source inference: which client holds a record, given that one of them does.

A client's model fits its own records better than the other clients' models do: the source is the
client whose returned model has the smallest loss (Bayes-optimal under equal priors), or whose
update points most along the record's gradient.

References:
    Hu et al., "Source inference attacks in federated learning", ICDM 2021; extended in
    arXiv 2310.00222.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.answers import RoundSettings, RoundValues, no_signal
from attacks.federated.rounds import alignments, losses
from fl_audit.attack_spec import AttackInput, AttackSpec
from fl_audit.errors import InputError
from fl_audit.estimates import SourceScores
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView

Signal = Literal["loss", "cosine"]
Vote = Literal["mean", "majority", "last"]
Values = NDArray[np.float64]
_LEAST_CLIENTS = 2  # a lone client has nobody to be compared with
_SHRINK = 5.0  # records of any class that a class mean is mixed with: some classes are few


class SourceSettings(RoundSettings):
    """What speaks for a client, and how rounds are put together."""

    signal: Signal = "loss"
    """"loss": minus the loss at the model sent back; "cosine": of update and gradient."""
    vote: Vote = "mean"
    """"mean" over the rounds; "majority": the client that most rounds point to; "last": each
    client's last round alone."""
    calibrated: bool = True
    """Compare with what the same client's answer is on other records of the class."""


def source_inference(
    view: TraceView,
    candidates: Records,
    *,
    signal: Signal = "loss",
    vote: Vote = "mean",
    calibrated: bool = True,
    rounds: Sequence[int] | None = None,
    device: str = "cpu",
) -> SourceScores:
    """How much speaks for each client being the source of each candidate.

    In each round a client is compared with the others that answered in it, so clients that took
    part in different rounds stay comparable. A client that was never seen cannot be guessed.

    Args:
        signal: What is compared: nats of loss, or cosines.
        vote: "mean" of the advantage over the round's other clients; "majority": the share of a
            client's rounds that point to it (ties go by the mean); "last": its last round.
        calibrated: False is the attack as published: the smallest loss wins. True takes off what
            a client's answer is on the candidates of the same class, because a client with much
            data of a class fits every record of it.
        rounds: Rounds to use; all by default.

    Returns:
        Scores of shape (m, n); higher = more likely the source. A client's model that overflows
        on a record has a large finite loss there.

    Raises:
        ObservationError: If the view does not grant each client's updates.
        InputError: If no round shows a difference between two clients ("no signal"), or the
            candidates do not fit the model.
    """
    totals: dict[int, Values] = {}
    votes: dict[int, Values] = {}
    seen: dict[int, int] = {}
    last: dict[int, Values] = {}
    per_round, alone = {}, []
    for number, clients, values in _signals(view, candidates, signal, rounds, device):
        if len(clients) < _LEAST_CLIENTS:
            alone.append(number)
            continue
        if calibrated:
            values = _like_for_like(values, candidates.labels, signal)
        ahead = values - values.mean(axis=0)
        best = ahead.argmax(axis=0)
        per_round[number] = (clients, ahead)
        for row, client in enumerate(clients):
            totals[client] = totals.get(client, 0) + ahead[row]
            votes[client] = votes.get(client, 0) + (best == row)
            seen[client] = seen.get(client, 0) + 1
            last[client] = ahead[row]
    if not any(ahead.any() for _, ahead in per_round.values()):
        raise no_signal() if not alone else _only_alone(alone)
    found = tuple(sorted(totals))
    means = np.stack([totals[c] / seen[c] for c in found])
    notes = list(view.unusable)
    if alone:
        notes.append(f"Rounds with one client say nothing about the source: {alone}.")
    scores = np.stack([last[c] for c in found]) if vote == "last" else means
    if vote == "majority":
        shares = np.stack([votes[c] / seen[c] for c in found])
        scores = _ties_by(shares, means, most=max(seen.values()))
    return SourceScores(found, scores, tuple(notes), per_round)


def _signals(
    view: TraceView,
    candidates: Records,
    signal: Signal,
    rounds: Sequence[int] | None,
    device: str,
) -> Iterator[RoundValues]:
    found: Iterable[RoundValues]
    if signal == "loss":
        found = (
            (number, clients, -values)
            for number, clients, values in losses(view, candidates, rounds=rounds, device=device)
        )
    else:
        found = (
            (a.round, a.clients, a.cosines())
            for a in alignments(view, candidates, rounds=rounds, device=device)
        )
    for number, clients, values in found:
        yield number, clients, np.nan_to_num(values, nan=-1e12, posinf=1e12, neginf=-1e12)


def _like_for_like(values: Values, labels: NDArray[np.int64], signal: Signal) -> Values:
    """Each client's values less what it answers on the candidates of the same class, (m, n).

    Of losses: log((p + 1/c) / (mean p + 1/c)), with p = exp(-loss) and c classes: how much more
    probable the client's model finds the label of this record than that of others of its class.
    Of cosines: the difference to the class mean.
    """
    if signal == "loss":
        floor = 1 / max(2, len(np.unique(labels)))
        likely = np.exp(values)
        result: Values = np.log((likely + floor) / (_class_means(likely, labels) + floor))
        return result
    return values - _class_means(values, labels)


def _class_means(values: Values, labels: NDArray[np.int64]) -> Values:
    """Mean over the records of the same class, mixed with the mean over all, shape (m, n)."""
    overall = values.mean(axis=1, keepdims=True)
    means = np.empty_like(values)
    for label in np.unique(labels):
        here = labels == label
        total = values[:, here].sum(axis=1, keepdims=True) + _SHRINK * overall
        means[:, here] = total / (here.sum() + _SHRINK)
    return means


def _ties_by(shares: Values, means: Values, *, most: int) -> Values:
    """Shares of rounds, plus less than any two different shares can differ by: rank of the mean."""
    ranks = means.argsort(axis=0).argsort(axis=0)
    result: Values = shares + 0.5 * ranks / (len(means) * most**2)
    return result


def _only_alone(rounds: list[int]) -> InputError:
    return InputError(
        "clients",
        dict.fromkeys(rounds, 1),
        "every round shows one client only, which has nobody to be compared with",
        "Record rounds in which two or more clients answer.",
    )


def _run(given: AttackInput) -> SourceScores:
    """`given.asked` would give the answer away, so it is not used."""
    settings = given.settings
    return source_inference(
        given.view,
        require_candidates(given),
        signal=settings.signal,
        vote=settings.vote,
        calibrated=settings.calibrated,
        rounds=settings.rounds,
        device=given.device,
    )


ATTACK = AttackSpec(
    name="source_inference",
    kind="estimate",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://arxiv.org/abs/2310.00222",
    summary="The client whose model fits a record best is the one that holds it",
    settings=SourceSettings,
)

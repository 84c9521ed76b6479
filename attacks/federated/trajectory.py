"""Learned trajectory: a classifier over what every round says about a record.

A supervised attack: for some records the adversary knows the answer - a known share of the
target's members, or every record of federations it played itself - and learns how losses, gradient
norms and alignments with updates move over the rounds for members and for others.

References:
    Nasr, Shokri, Houmansadr, "Comprehensive privacy analysis of deep learning", S&P 2019 (passive
    global and local attacker). https://arxiv.org/abs/1812.00910
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.candidates import require_candidates
from attacks.federated.answers import LayerSettings, answer, no_signal, notes_on
from attacks.federated.rehearsal import LEAST, require_rehearsals
from attacks.federated.rounds import SUM, Alignment, Source, alignments, losses, record_losses
from attacks.membership.classifiers import Kind, fit_log_odds
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView

Values = NDArray[np.float64]
_TINY = 1e-8


class Settings(LayerSettings):
    """Where the classifier learns, and which it is."""

    fit: Literal["known", "shadow"] = "known"
    """"known": on candidates whose membership is granted; "shadow": on shadow federations."""
    classifier: Kind = "logistic"
    known_fraction: float = Field(default=0.5, gt=0, lt=1)
    """Share of the members, and of the non-members, that is known; they are not scored."""
    num_shadow_federations: int = Field(default=4, ge=LEAST)

    @property
    def also_knows(self) -> Knowledge:
        """What the adversary must know for these settings."""
        return Knowledge.KNOWN_MEMBERS if self.fit == "known" else Knowledge.AUXILIARY_DATA


def trajectory_features(
    view: TraceView,
    candidates: Records,
    *,
    asked: NDArray[np.int64] | None = None,
    layers: Sequence[str] | None = None,
    rounds: Sequence[int] | None = None,
    source: Source = "clients",
    device: str = "cpu",
) -> Values:
    """What every round says about each candidate.

    Per round: log losses at the model that was sent and at those that came back, the log gradient
    norm, the cosine with the updates over all parameters and for each, and the gradient
    difference; of the client in question (or the largest over clients), and the mean of the rest.

    Returns:
        Shape (n, features). A round in which a client took no part leaves NaN.

    Raises:
        ObservationError: If the view does not grant what it needs.
        InputError: If there is no signal, or a layer or round is unknown.
    """
    aligned = {
        found.round: _alignment_features(found, asked)
        for found in alignments(
            view, candidates, layers=layers, rounds=rounds, source=source, device=device
        )
    }
    if not aligned:
        raise no_signal()
    columns: list[Values] = []
    module = view.architecture()
    for number, clients, values in losses(
        view, candidates, rounds=rounds, source=source, device=device
    ):
        if number in aligned:
            before = record_losses(module, view.global_model(number), candidates, device=device)
            columns += [np.log(before + _TINY), *_sides(-np.log(values + _TINY), clients, asked)]
            columns += aligned[number]
    return np.stack(columns, axis=1)


def _alignment_features(found: Alignment, asked: NDArray[np.int64] | None) -> list[Values]:
    norms = np.sqrt(found.gradient_squares.sum(axis=0))
    differences = found.dots.sum(axis=0) / (np.square(norms) + _TINY)
    columns = [np.log(norms.mean(axis=0) + _TINY)]
    for values in (found.cosines(), np.arcsinh(differences), *found.layer_cosines()):
        columns += _sides(values, found.clients, asked)
    return columns


def _sides(
    values: Values, clients: tuple[int, ...], asked: NDArray[np.int64] | None
) -> list[Values]:
    """The value of the client in question, or the largest; and the mean of the others."""
    if clients == (SUM,):
        return [values[0]]
    if asked is None:
        own = values.max(axis=0)
    else:
        own = answer(clients, values, asked)
        own = np.where(np.isin(asked, clients), own, np.nan)
    if len(clients) == 1:
        return [own, np.zeros_like(own)]
    rest = (values.sum(axis=0) - np.nan_to_num(own)) / (len(clients) - 1)
    return [own, np.where(np.isnan(own), np.nan, rest)]


def filled(features: Values, means: Values) -> Values:
    """Features with a known mean where a round says nothing."""
    return np.where(np.isnan(features), means, features)


def _check_known(is_member: NDArray[np.bool_], fraction: float) -> None:
    """Refuse known candidates that are all members, or all non-members."""
    members = int(is_member.sum())
    if members == 0 or members == len(is_member):
        raise InputError(
            "known_fraction",
            fraction,
            f"{members} members and {len(is_member) - members} non-members are known with it, and "
            "both kinds are needed to learn from",
            "Raise known_fraction, ask about more records (game.members), or learn from shadow "
            'federations: fit = "shadow".',
        )


def _run_at(given: AttackInput, source: Source) -> MembershipScores:
    candidates, settings = require_candidates(given), given.settings

    def features(view: TraceView) -> Values:
        return trajectory_features(
            view,
            candidates,
            asked=given.asked if source == "clients" else None,
            layers=settings.layers,
            rounds=settings.rounds,
            source=source,
            device=given.device,
        )

    if settings.fit == "known":
        if given.known is None:
            raise InputError(
                "known members",
                None,
                'fit = "known" learns from candidates whose membership is granted',
                "Play a game whose truth is known (simulations do), or learn from shadow "
                'federations: fit = "shadow".',
            )
        rows, is_member = given.known
        _check_known(is_member, settings.known_fraction)
        at = features(given.view)
        learned = at[rows]
        note = f"Learned from {len(rows)} candidates whose membership was granted."
    else:
        at = features(given.view)
        played, how = require_rehearsals(given, settings.num_shadow_federations)
        learned = np.concatenate([features(rehearsal.view) for rehearsal in played])
        if learned.shape[1] != at.shape[1]:
            raise InputError(
                "rounds",
                at.shape[1],
                "the shadow federations have other rounds with usable updates than the target",
                "Name rounds in which every federation has updates: rounds = [...].",
            )
        is_member = np.concatenate([rehearsal.is_member for rehearsal in played])
        note = f"Learned from {len(played)} {how}."
    keep = ~np.isnan(learned).all(axis=0)
    means = np.nanmean(learned[:, keep], axis=0)
    scores = fit_log_odds(
        settings.classifier,
        filled(learned[:, keep], means),
        is_member,
        at=filled(at[:, keep], means),
        rng=given.rng,
    )
    clients = (SUM,) if source == "sum" else ()
    return MembershipScores(scores, (note, *notes_on(given.view, clients)))


def _run(given: AttackInput) -> MembershipScores:
    return _run_at(given, "clients")


def _run_local(given: AttackInput) -> MembershipScores:
    return _run_at(given, "sum")


ATTACK = AttackSpec(
    name="trajectory",
    kind="membership",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    knows=Knowledge.LABELS,
    run=_run,
    reference="https://arxiv.org/abs/1812.00910",
    summary="A classifier learns how losses and gradients of members move over the rounds",
    settings=Settings,
)
LOCAL_ATTACK = AttackSpec(
    name="local_trajectory",
    kind="membership",
    requires=Observation.AGGREGATE | Observation.GLOBAL_MODEL,
    knows=Knowledge.LABELS,
    run=_run_local,
    reference="https://arxiv.org/abs/1812.00910",
    summary="A classifier learns how global losses and gradients of members move over the rounds",
    settings=Settings,
)

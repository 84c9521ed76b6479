"""Label distribution beside the truth: overlap of class shares, and which classes occur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.paired import paired_gain
from fl_audit.errors import InputError
from fl_audit.estimates import Clients, LabelShare, LabelShares, Values
from fl_audit.game import GameTruth, MembershipGame
from fl_audit.results import Estimate, RoundEstimate
from fl_audit.stats import share_ci

Table = dict[str, NDArray[np.generic]]


def score_labels(
    output: LabelShares, game: MembershipGame | None, truth: GameTruth | None
) -> tuple[dict[str, Any], Table]:
    """Fields of the record, and the table: one row a round, update and class."""
    is_sum = any(len(e.clients) > 1 for e in output.estimates)
    fields: dict[str, Any] = {
        "claim": "which classes the federation holds" if is_sum else "which classes a client holds",
        "trial": "the federation (all its rounds together)"
        if is_sum
        else "a client (all its rounds together)",
        "metrics": {},
        "chance": {},
    }
    table = _labels_table(output.estimates)
    if truth is None:
        return fields, table
    if truth.client_labels is None:
        fields["refused"] = {"overlap": "the run did not record which classes clients hold"}
        return fields, table
    counts = truth.client_labels
    units = _units(output.estimates, is_sum)
    mix = None
    if game is not None and len(game.auxiliary):
        mix = np.bincount(game.auxiliary.labels, minlength=counts.shape[1])[: counts.shape[1]]
    fields |= _label_figures(units, counts, mix)
    return fields, table


def _units(estimates: Sequence[LabelShare], is_sum: bool) -> list[list[LabelShare]]:
    """Estimates that are one trial: all rounds of a client, or all sums of a federation."""
    units: dict[Clients, list[LabelShare]] = {}
    for estimate in estimates:
        units.setdefault(() if is_sum else estimate.clients, []).append(estimate)
    return list(units.values())


def _label_figures(
    units: Sequence[Sequence[LabelShare]],
    counts: NDArray[np.int64],
    mix: NDArray[np.int64] | None,
) -> dict[str, Any]:
    """Each metric beside the same for the mix of the auxiliary records, and the gain."""
    found: dict[str, Estimate] = {}
    baseline: dict[str, Estimate] = {}
    chance: dict[str, float] = {}
    refused: dict[str, str] = {}
    true = [np.stack([_true(estimate, counts) for estimate in unit]) for unit in units]
    metrics: dict[str, NDArray[np.float64]] = {}
    if all(estimate.shares is not None for unit in units for estimate in unit):
        metrics["overlap"] = np.array(
            [
                _overlap(_mean(unit), mixes.mean(axis=0))
                for unit, mixes in zip(units, true, strict=True)
            ]
        )
    else:
        refused["overlap"] = "the method infers which classes occur, not how many"
    metrics["presence_f1"] = np.array(
        [
            np.mean([_f1(e.present, row > 0) for e, row in zip(unit, mixes, strict=True)])
            for unit, mixes in zip(units, true, strict=True)
        ]
    )
    for name, values in metrics.items():
        found[name] = share_ci(values)
        if mix is None:
            continue
        guess = mix / max(1, mix.sum())
        guesses = np.array([_of_guess(name, guess, mixes) for mixes in true])
        baseline[name] = share_ci(guesses)
        try:
            found[f"{name}_gain"] = paired_gain(values, guesses)
        except InputError as error:
            refused[f"{name}_gain"] = error.rule
            continue
        chance = chance or {f"{name}_gain": 0.0}  # the first metric there is decides
    fields: dict[str, Any] = {
        "metrics": found,
        "baseline": baseline,
        "chance": chance,
        "refused": refused,
    }
    if "overlap" in metrics:
        fields["timeline_metric"] = "overlap"
        fields["timeline"] = _label_timeline([e for unit in units for e in unit], counts)
    fields["notes"] = [
        "Overlap is 1 less the total variation distance; the baseline is the mix of the auxiliary "
        "records."
    ]
    return fields


def _of_guess(name: str, guess: Values, true: Values) -> float:
    """The same metric for one guess and the true mixes of a unit's rounds, shape (rounds, c)."""
    if name == "overlap":
        return _overlap(guess, true.mean(axis=0))
    return float(np.mean([_f1(guess > 0, row > 0) for row in true]))


def _true(estimate: LabelShare, counts: NDArray[np.int64]) -> Values:
    total = counts[list(estimate.clients)].sum(axis=0)
    return np.asarray(total / max(1, total.sum()), dtype=np.float64)


def _mean(unit: Sequence[LabelShare]) -> Values:
    """Mean over rounds: batches and errors differ, a client's data does not."""
    rows = [estimate.shares for estimate in unit if estimate.shares is not None]
    return np.asarray(np.mean(rows, axis=0), dtype=np.float64)


def _label_timeline(
    estimates: Sequence[LabelShare], counts: NDArray[np.int64]
) -> list[RoundEstimate]:
    by_round: dict[int, list[float]] = {}
    for estimate in estimates:
        if estimate.shares is not None:
            overlap = _overlap(estimate.shares, _true(estimate, counts))
            by_round.setdefault(estimate.round, []).append(overlap)
    return [
        RoundEstimate(round=number, estimate=share_ci(np.array(values)))
        for number, values in sorted(by_round.items())
    ]


def _overlap(found: Values, true: Values) -> float:
    return float(np.clip(np.minimum(found, true).sum(), 0, 1))


def _f1(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    right = int((found & true).sum())
    return 2 * right / max(1, int(found.sum() + true.sum()))


def _labels_table(estimates: Sequence[LabelShare]) -> Table:
    """One row a round, update and class. `client` is -1 for a sum."""
    classes = max((len(e.present) for e in estimates), default=0)
    nothing = np.full(classes, np.nan)
    return {
        "round": np.repeat([e.round for e in estimates], classes),
        "client": np.repeat(
            [e.clients[0] if len(e.clients) == 1 else -1 for e in estimates], classes
        ),
        "class": np.tile(np.arange(classes), len(estimates)),
        "share": np.concatenate([nothing if e.shares is None else e.shares for e in estimates]),
        "is_present": np.concatenate([e.present for e in estimates]),
    }

"""Property inference beside the truth: AUC over clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.federated.properties import class_of
from fl_audit.estimates import PropertyScores
from fl_audit.game import GameTruth
from fl_audit.results import RoundEstimate
from fl_audit.stats import auc, auc_ci, mean_ci

Table = dict[str, NDArray[np.generic]]
Scores = Mapping[tuple[int, int], float]
LEAST_CLIENTS = 3  # with, and without: fewer bound no AUC


def score_property(output: PropertyScores, truth: GameTruth | None) -> tuple[dict[str, Any], Table]:
    """Fields of the record, and the table: one row a round and client, with the log-odds."""
    keys = list(output.scores)
    table: Table = {
        "round": np.array([number for number, _ in keys]),
        "client": np.array([client for _, client in keys]),
        "log_odds": np.array([output.scores[key] for key in keys]),
    }
    fields: dict[str, Any] = {
        "claim": f"which clients’ data has the property {output.property}",
        "trial": "a client (all its rounds together)",
        "metrics": {},
        "chance": {},
    }
    if truth is None:
        return fields, table
    shares = _shares(output.property, truth)
    if shares is None:
        fields["refused"] = {
            "auc": "the run did not count this property; name the attack in the scenario's "
            "audit.attacks, and run it again"
        }
        return fields, table
    table["share"] = shares[table["client"]]
    has = shares > output.min_share
    means = _means(output.scores)
    clients = np.array(sorted(means))
    with_it, without = int(has[clients].sum()), int((~has[clients]).sum())
    fields["notes"] = [
        f"{with_it} of {len(clients)} clients seen have the property (more than "
        f"{output.min_share:g} of their records)."
    ]
    if min(with_it, without) < LEAST_CLIENTS:
        fields["refused"] = {
            "auc": f"{with_it} clients have the property and {without} do not; an AUC over clients "
            f"needs {LEAST_CLIENTS} of each: the scores stand in the table"
        }
        return fields, table
    fields["metrics"] = {"auc": auc_ci(has[clients], np.array([means[c] for c in clients]))}
    fields["chance"] = {"auc": 0.5}
    null = [_means(scores) for scores in output.null]
    values = [auc(has[clients], np.array([m[c] for c in clients])) for m in null]
    if len(values) > 1:
        fields["null"] = {"auc": mean_ci(np.array(values), bounds=(0.0, 1.0))}
        fields["notes"] += [
            f"The null is the mean of {len(values)} classifiers of shuffled labels."
        ]
    fields["timeline_metric"] = "auc"
    fields["timeline"] = _timeline(output.scores, has)
    return fields, table


def _shares(name: str, truth: GameTruth) -> NDArray[np.float64] | None:
    """Share of each client's records with the property, shape (clients,); None: not known."""
    label = class_of(name)
    if label is None:
        return truth.property_shares.get(name)
    counts = truth.client_labels
    if counts is None or label >= counts.shape[1]:
        return None
    result: NDArray[np.float64] = counts[:, label] / np.maximum(1, counts.sum(axis=1))
    return result


def _means(scores: Scores) -> dict[int, float]:
    """Each client's mean over its rounds."""
    values: dict[int, list[float]] = {}
    for (_, client), score in scores.items():
        values.setdefault(client, []).append(score)
    return {client: float(np.mean(found)) for client, found in values.items()}


def _timeline(scores: Scores, has: NDArray[np.bool_]) -> list[RoundEstimate]:
    timeline = []
    for number in sorted({number for number, _ in scores}):
        here = [client for at, client in scores if at == number]
        if min(has[here].sum(), (~has[here]).sum()) >= LEAST_CLIENTS:
            figure = auc_ci(has[here], np.array([scores[number, c] for c in here]))
            timeline.append(RoundEstimate(round=number, estimate=figure))
    return timeline

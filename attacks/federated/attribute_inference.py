"""Attribute inference: one input value of a record is unknown; the updates tell which fits.

For each hypothesis the record is completed, and the update of its client is compared with the
completed record's gradient, or the loss is taken at the model sent back. The hypothesis that fits
best wins, once what every record says for it has been taken off (the mean over auxiliary records).
Beside it always stands an imputer that saw no model: beating chance is nothing, beating it is a
leak. The runner takes the value out of the candidates before this attack gets them.

References:
    "An efficient gradient-based inference attack for federated learning", arXiv 2512.15143, whose
    gradient responses under alternative attribute hypotheses these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.candidates import require_candidates
from attacks.federated.answers import RoundSettings, answer, average
from attacks.federated.imputer import Kind, impute
from attacks.federated.rounds import alignments, losses
from fl_audit.attack_spec import AttackInput, AttackSpec
from fl_audit.errors import InputError
from fl_audit.estimates import AttributeGuesses
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView

Signal = Literal["loss", "cosine"]
Values = NDArray[np.float64]
MASKED = 0.0  # what stands where the value was


class AttributeSettings(RoundSettings):
    """Which value is unknown, and what speaks for a hypothesis about it."""

    attribute: int = Field(default=0, ge=0)
    """Place of the value in the flattened input, from 0."""
    num_values: int = Field(default=4, ge=2)
    """Quantile bins of the auxiliary records; their distinct values, if there are no more."""
    signal: Signal = "cosine"
    """"cosine" of update and gradient, or minus the "loss" at the model sent back."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of the updates' evidence beside the imputer's: nats a standard deviation."""
    imputer: Kind = "best"
    """"logistic", "boosting", or the "best" in cross-validation on the auxiliary records."""


def mask(settings: AttributeSettings, records: Records) -> Records:
    """The records with the value taken out.

    Raises:
        InputError: If the input has no such value.
    """
    return _with_value(records, settings.attribute, MASKED)


def bins_of(values: NDArray[np.generic], num_values: int) -> tuple[Values, Values]:
    """Bins of an attribute: its distinct values if there are few, else quantiles.

    Args:
        values: The attribute in the auxiliary records, shape (n,); at least two differ.

    Returns:
        (inner edges, shape (v - 1,); a value that stands for each bin, shape (v,)).
    """
    known = np.asarray(values, dtype=np.float64)
    distinct = np.unique(known)
    if len(distinct) <= num_values:
        return (distinct[1:] + distinct[:-1]) / 2, distinct
    edges = np.unique(np.quantile(known, np.arange(1, num_values) / num_values))
    edges = edges[edges > distinct[0]]
    if not len(edges):  # more than the share of a bin below have the smallest value
        edges = distinct[1:2]
    place = np.searchsorted(edges, known, side="right")
    return edges, np.array([np.median(known[place == b]) for b in range(len(edges) + 1)])


def attribute_scores(
    view: TraceView,
    records: Records,
    values: Values,
    *,
    attribute: int,
    asked: NDArray[np.int64] | None = None,
    signal: Signal = "cosine",
    rounds: Sequence[int] | None = None,
    device: str = "cpu",
) -> Values:
    """How well each hypothesis fits the updates, averaged over rounds, shape (n, v).

    Args:
        records: n records; what stands at `attribute` is not looked at.
        values: Hypotheses, shape (v,).
        asked: Client in question for each record, shape (n,); None: the client it fits best.

    Returns:
        Cosines, or nats; higher = fits better.
    """
    whole = Records.concatenate([_with_value(records, attribute, float(v)) for v in values])
    if signal == "cosine":
        found = average(
            (a.round, a.clients, a.cosines())
            for a in alignments(view, whole, rounds=rounds, device=device)
        )
    else:
        found = average(
            (number, clients, -value)
            for number, clients, value in losses(view, whole, rounds=rounds, device=device)
        )
    everyone = None if asked is None else np.tile(asked, len(values))
    return answer(found.clients, found.means, everyone).reshape(len(values), len(records)).T


def attribute_inference(
    view: TraceView,
    candidates: Records,
    auxiliary: Records,
    settings: AttributeSettings,
    *,
    asked: NDArray[np.int64] | None = None,
    seed: int,
    device: str = "cpu",
) -> AttributeGuesses:
    """Guesses of one unknown value: from updates, from an imputer, and from both.

    Raises:
        ObservationError: If the view does not grant each client's updates.
        InputError: If there is no such value, it never varies, or no update is usable.
    """
    attribute = settings.attribute
    known = _varying(auxiliary, attribute)
    edges, values = bins_of(known, settings.num_values)
    bins = np.searchsorted(edges, known, side="right")
    both = Records.concatenate([candidates, auxiliary])
    if asked is not None:  # of auxiliary records no client is asked; any will do to set the scale
        asked = np.concatenate([asked, np.resize(asked, len(auxiliary))])
    raw = attribute_scores(
        view,
        both,
        values,
        attribute=attribute,
        asked=asked,
        signal=settings.signal,
        rounds=settings.rounds,
        device=device,
    )
    scores = _calibrated(raw, len(candidates))
    prior = impute(
        auxiliary,
        bins,
        candidates,
        attribute=attribute,
        num_bins=len(values),
        kind=settings.imputer,
        seed=seed,
    )
    combined = np.log(np.clip(prior, 1e-6, None)) + settings.weight * scores
    return AttributeGuesses(
        attribute,
        edges,
        scores,
        update=scores.argmax(axis=1),
        imputed=prior.argmax(axis=1),
        combined=combined.argmax(axis=1),
        notes=tuple(view.unusable),
    )


def _calibrated(raw: Values, num: int) -> Values:
    """Scores of the first `num` rows less each hypothesis' mean over the rest, in their spread."""
    centred = raw - raw.mean(axis=1, keepdims=True)  # what speaks for the record at all
    rest = centred[num:]
    spread = float((rest - rest.mean(axis=0)).std())
    scores: Values = (centred[:num] - rest.mean(axis=0)) / (spread if spread > 0 else 1.0)
    return scores


def _with_value(records: Records, attribute: int, value: float) -> Records:
    flat = _flat(records, attribute).copy()
    flat[:, attribute] = value
    inputs = flat.reshape(len(records), *records.input_shape)
    return Records(records.ids, inputs, records.labels, records.targets)


def _flat(records: Records, attribute: int) -> NDArray[np.float32]:
    flat = records.inputs[:].reshape(len(records), -1)
    if not 0 <= attribute < flat.shape[1]:
        raise InputError(
            "attribute",
            attribute,
            f"an input has {flat.shape[1]} values, numbered from 0",
            "Give the place of the value in the flattened input.",
        )
    return flat


def _varying(records: Records, attribute: int) -> NDArray[np.float32]:
    """The attribute's values, shape (n,), which must not all be one."""
    flat = _flat(records, attribute)
    varies = (flat != flat[:1]).any(axis=0)
    if not varies[attribute]:
        first = int(varies.argmax())
        raise InputError(
            "attribute",
            attribute,
            f"takes one value in all {len(flat)} auxiliary records, so there is nothing to guess",
            f"Name one that varies, for example attribute = {first}."
            if varies[first]
            else "Give more auxiliary records: these are all alike.",
        )
    found: NDArray[np.float32] = flat[:, attribute]
    return found


def _run(given: AttackInput) -> AttributeGuesses:
    if given.auxiliary is None or len(given.auxiliary) == 0:
        raise InputError(
            "auxiliary",
            None,
            "complete records like the candidates are needed to impute from",
            "Set game.auxiliary, and let the threat model know auxiliary-data.",
        )
    return attribute_inference(
        given.view,
        require_candidates(given),
        given.auxiliary,
        given.settings,
        asked=given.asked,
        seed=int(given.rng.integers(2**31)),
        device=given.device,
    )


ATTACK = AttackSpec(
    name="attribute_inference",
    kind="estimate",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    knows=Knowledge.LABELS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://arxiv.org/abs/2512.15143",
    summary="Of all values that a record's unknown field may have, the true one fits the update",
    settings=AttributeSettings,
    masks=mask,
)

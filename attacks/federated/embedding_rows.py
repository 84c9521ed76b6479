"""Embedding rows: only the rows of tokens that occur in the data get a gradient.

So the tokens of a client, or of all clients behind a sum, are read off exactly (embeddings.py), and
a record with a token that is missing was not trained on. It says nothing where every row moves:
noise, an output layer that shares the weights, Adam with L2 decay, or data that hold the whole
vocabulary.

References:
    Melis, Song, De Cristofaro, Shmatikov, "Exploiting unintended feature leakage in collaborative
    learning", IEEE S&P 2019, section 4.1. https://arxiv.org/abs/1805.04049
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from attacks.candidates import require_candidates
from attacks.federated.answers import RoundSettings, no_signal, notes_on
from attacks.federated.embeddings import find_embedding, told_rows
from attacks.federated.rounds import Source
from attacks.federated.seats import Best, nearest_source
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Observation
from fl_audit.trace import TraceView

Values = NDArray[np.float64]


class EmbeddingSettings(RoundSettings):
    """Which rounds and embedding to use."""

    layer: str | None = None
    """Parameter name of the embedding matrix; by default the model's first embedding."""


def embedding_rows_scores(
    view: TraceView,
    candidates: Records,
    *,
    asked: NDArray[np.int64] | None = None,
    auxiliary: Records | None = None,
    layer: str | None = None,
    rounds: Sequence[int] | None = None,
    source: Source | None = None,
) -> Values:
    """Score candidates by the share of their tokens that occur in the data behind an update.

    Args:
        candidates: Inputs are whole numbers from 0, shape (n, ...).
        asked: Client in question for each candidate, shape (n,); None: any client.
        auxiliary: Records of the same kind: a token counts the more, the fewer of them hold it.
        layer: Parameter name of the embedding; the model's first by default.
        rounds: Rounds to use; all by default.
        source: As in `present_tokens`.

    Returns:
        Scores in [0, 1], shape (n,), higher = more likely a member: 1 minus the share of a
        record's different tokens, weighted by rarity, that is missing; the best of all rounds and
        clients, because one client in one round suffices.

    Raises:
        ObservationError: If the view does not grant the updates or the global model.
        InputError: If the model has no embedding, inputs are no tokens of it, or no update tells
            tokens apart ("no signal").
    """
    found, _ = _find(view, candidates, auxiliary, layer, rounds, source or nearest_source(view))
    return found.scores(asked)


def _find(
    view: TraceView,
    candidates: Records,
    auxiliary: Records | None,
    layer: str | None,
    rounds: Sequence[int] | None,
    source: Source,
) -> tuple[Best, tuple[str, ...]]:
    embedding, found = find_embedding(view, layer), Best()
    counts, silent, held, weights = [], 0, None, None
    for (number, client), rows, size in told_rows(view, embedding, rounds, source):
        if rows is None:
            silent += 1
            continue
        if held is None or weights is None:
            held = token_table(candidates, size, embedding.padding)
            weights = rarity(auxiliary, size, embedding.padding)
        found.add(number, client, coverage(held, rows, weights))
        counts.append(int(rows.sum()))
    if not counts:
        raise _nothing(silent)
    notes = [f"From {min(counts)} to {max(counts)} tokens are present in an update ({size} known)."]
    if silent:
        notes.append(f"{silent} updates are zero or move every row, and say nothing.")
    return found, tuple(notes)


def token_table(records: Records, size: int, padding: int | None) -> csr_array:
    """1 where a record holds a token, padding left out, sparse, shape (n, size).

    Raises:
        InputError: If an input is not a whole number from 0 to `size` - 1.
    """
    inputs = np.asarray(records.inputs).reshape(len(records), -1)
    bad = (inputs != np.floor(inputs)) | (inputs < 0) | (inputs >= size)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(
            f"input {column} of record row {row}",
            float(inputs[row, column]),
            f"is no token of the embedding: whole numbers from 0 to {size - 1}",
            "Give records as the model takes them: a sequence of token numbers.",
        )
    tokens = inputs.astype(np.int64)
    rows = np.repeat(np.arange(len(records)), tokens.shape[1])
    pairs = np.unique(np.stack([rows, tokens.ravel()]), axis=1)  # each token of a record once
    if padding is not None:
        pairs = pairs[:, pairs[1] != padding]
    return csr_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(len(records), size))


def rarity(auxiliary: Records | None, size: int, padding: int | None) -> Values:
    """Weight of each token, shape (size,): 1 + log of the records per record that holds it.

    One is added to both numbers, so that tokens that no auxiliary record holds weigh most, and not
    infinitely. All 1 without auxiliary records.
    """
    if auxiliary is None or len(auxiliary) == 0:
        return np.ones(size)
    holders = np.asarray(token_table(auxiliary, size, padding).sum(axis=0))
    result: Values = 1 + np.log((1 + len(auxiliary)) / (1 + holders))
    return result


def coverage(held: csr_array, present: NDArray[np.bool_], weights: Values) -> Values:
    """Weighted share of each record's tokens that are present, shape (n,); 0 if it has none."""
    total = held @ weights
    here = held @ np.where(present, weights, 0.0)
    result: Values = np.divide(here, total, out=np.zeros_like(total), where=total > 0)
    return result


def _nothing(silent: int) -> InputError:
    if not silent:
        return no_signal()
    return InputError(
        "updates",
        silent,
        "every one is zero or moves every row of the embedding, so there is no signal",
        "Noise, an output layer that shares the weights, Adam with L2 decay, or data that hold "
        "every token hide which tokens are present.",
    )


def _run(given: AttackInput) -> MembershipScores:
    settings, view = given.settings, given.view
    found, notes = _find(
        view,
        require_candidates(given),
        given.auxiliary,
        settings.layer,
        settings.rounds,
        nearest_source(view),
    )
    return MembershipScores(
        found.scores(given.asked),
        (*notes, *notes_on(view, tuple(sorted(found.clients)))),
        found.per_round(given.asked),
    )


ATTACK = AttackSpec(
    name="embedding_rows",
    kind="membership",
    requires=Observation.AGGREGATE | Observation.GLOBAL_MODEL,
    prefers=Observation.CLIENT_UPDATES,
    run=_run,
    reference="https://arxiv.org/abs/1805.04049",
    summary="Only embedding rows of tokens in the data move: one that does not clears a record",
    settings=EmbeddingSettings,
)

"""Sequences of tokens behind one gradient: two spans, a search, and how far to believe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.reconstruction.token_layers import Reader
from attacks.reconstruction.token_search import (
    any_inputs,
    num_prefixes,
    sequences,
    surest_first,
    tokens_by_position,
)
from attacks.reconstruction.token_spans import InputSpan, layer_span

Tokens = NDArray[np.int64]
_MOST_BY_CHANCE = 0.1  # expected number of tokens or prefixes that fit and are not of the data


@dataclass(frozen=True, slots=True, eq=False)
class RecoveredTokens:
    """What one gradient gave back.

    Attributes:
        sequences: Different sequences, surest first, shape (b, length); b is 0 if `why` says why.
        tokens: Tokens that the batch holds, ascending, without padding.
        rank: Linearly independent inputs of the second layer, or of the first if that is all.
        explained: Different prefixes of the sequences. Where it equals the rank, the sequences
            account for the whole gradient.
        dropped: Prefixes and sequences that were given up because too many fitted.
        why: Why there are no sequences, or None.
    """

    sequences: Tokens
    tokens: Tokens
    rank: int
    explained: int = 0
    dropped: int = 0
    why: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the sequences account for the whole gradient, and nothing else fitted."""
        return self.why is None and self.explained == self.rank and not self.dropped


def recover_tokens(
    reader: Reader,
    gradients: Mapping[str, NDArray[np.floating]],
    *,
    batch_size: int | None = None,
    roundings: float = 0.0,
    rtol: float = 1e-7,
    most_sequences: int = 64,
) -> RecoveredTokens:
    """Sequences of tokens behind a gradient.

    Args:
        reader: The model that the gradient was taken at, from `token_layers.read`.
        gradients: By parameter name; those of the reader's layers are used. Any multiple will do.
        batch_size: Number of examples, if known: no more sequences than that are given back.
        roundings: Differences of stored weights have the weights' rounding: how much of it, in
            units of one storing. 0 for gradients.
        rtol: Singular values below this share of the largest are noise.
        most_sequences: Prefixes to follow at once.

    Returns:
        Sequences without doubles: a text that is twice in the batch is given once. Where padding
        leaves no trace, a text that is the beginning of another is not found, and a text whose
        next token is missed is cut short there: then `is_whole` is False.

    Raises:
        InputError: If a gradient is missing, has the wrong shape or is not finite.
    """
    spans = [
        layer_span(reader.module, names, gradients, rtol=rtol, roundings=roundings)
        for names in (reader.layers.first, reader.layers.second)
        if names
    ]
    first = spans[0]
    if first is None:
        return _nothing(reader, 0, "the first layer got no gradient beyond rounding")
    chance = first.chance(any_inputs(reader, reader.layers.first[0]))
    if chance * reader.vocabulary * reader.length > _MOST_BY_CHANCE:
        return _nothing(
            reader,
            first.rank,
            f"rank {first.rank} leaves too little outside the span: the gradient was made of about "
            "as many tokens as the model is wide, or more, or holds noise or unknown weight decay",
        )
    candidates = tokens_by_position(reader, first)
    if not any(len(tokens) for tokens in candidates):
        return _nothing(
            reader,
            first.rank,
            "no token lies in the span: many steps, noise or dropout moved what flowed in",
        )
    second = spans[1] if len(spans) > 1 else None
    if second is None or not second.slack or not reader.is_causal:
        return _by_position(reader, first, candidates, _why_not(reader, second))
    return _in_order(reader, second, candidates, batch_size, most_sequences)


def _in_order(
    reader: Reader,
    span: InputSpan,
    candidates: list[Tokens],
    batch_size: int | None,
    most: int,
) -> RecoveredTokens:
    tokens = _without_padding(reader, np.concatenate(candidates))
    chance = span.chance(any_inputs(reader, reader.layers.second[0]))
    empty = np.zeros((0, reader.length), dtype=np.int64)
    by_chance = RecoveredTokens(
        empty,
        tokens,
        span.rank,
        why="so few dimensions are outside the second layer's span that sequences fit by chance",
    )
    if chance * sum(map(len, candidates)) > _MOST_BY_CHANCE:  # a search tries that many and more
        return by_chance
    found = sequences(reader, span, candidates, most=most)
    if chance * found.tried > _MOST_BY_CHANCE:
        return by_chance
    if not len(found.tokens):
        why = (
            "too many tokens fit at a position to try them all"
            if found.dropped
            else "no sequence fits the second layer"
        )
        return RecoveredTokens(empty, tokens, span.rank, dropped=found.dropped, why=why)
    kept = surest_first(reader, span, found.tokens)[:batch_size]
    # every prefix adds a dimension: more of them than the rank are not all of the data
    while num_prefixes(kept, reader.silent) > span.rank:
        kept = kept[:-1]
    explained, dropped = num_prefixes(kept, reader.silent), len(found.tokens) - len(kept)
    if explained == span.rank:  # nothing is left that other tokens would be needed for
        tokens = _without_padding(reader, kept)
    return RecoveredTokens(kept, tokens, span.rank, explained, found.dropped + dropped)


def _by_position(
    reader: Reader, span: InputSpan, candidates: list[Tokens], why: str
) -> RecoveredTokens:
    """Without a second layer to ask: one sequence if no position leaves a choice."""
    tokens = _without_padding(reader, np.concatenate(candidates))
    ends = next((i for i, found in enumerate(candidates) if not len(found)), reader.length)
    has_gap = any(len(found) for found in candidates[ends:])
    if has_gap or max(map(len, candidates)) > 1 or (ends < reader.length and reader.silent is None):
        empty = np.zeros((0, reader.length), dtype=np.int64)
        return RecoveredTokens(empty, tokens, span.rank, why=why)
    fill = 0 if reader.padding is None else reader.padding
    row = np.full(reader.length, fill, dtype=np.int64)
    row[:ends] = np.concatenate(candidates[:ends])
    return RecoveredTokens(row[None], tokens, span.rank, ends)


def _why_not(reader: Reader, second: InputSpan | None) -> str:
    several = "several tokens fit at a position, and"
    if not reader.layers.second:
        return f"{several} the model has no layer behind an attention"
    if not reader.is_causal:
        return f"{several} tokens attend to those behind them, so no prefix can be tried alone"
    if second is None:
        return f"{several} the second layer got no gradient beyond rounding"
    return f"{several} the second layer's gradient has full rank, {second.rank}"


def _without_padding(reader: Reader, tokens: Tokens) -> Tokens:
    found = np.unique(tokens)
    return found if reader.padding is None else found[found != reader.padding]


def _nothing(reader: Reader, rank: int, why: str) -> RecoveredTokens:
    empty = np.zeros((0, reader.length), dtype=np.int64)
    return RecoveredTokens(empty, np.zeros(0, dtype=np.int64), rank, why=why)

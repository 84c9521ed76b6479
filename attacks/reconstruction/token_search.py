"""Sequences of tokens from the spans of two layers' inputs.

The first layer's input at a position depends on the token there alone, so every pair of token and
position can be tried. The second layer's input depends on the tokens before it, too: a sequence is
put together from the left, and each prefix must lie in the second span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.reconstruction.token_layers import Reader
from attacks.reconstruction.token_spans import InputSpan

Tokens = NDArray[np.int64]
Values = NDArray[np.float64]
_BLOCK = 4_000_000  # numbers of inputs that are held at once
_STRIDE = 7919  # a prime: no vocabulary is a multiple of it
_MOST_TRIED = 20_000  # prefixes at one position: where so many fit, the span tells nothing


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """What a search from the left came to.

    Attributes:
        tokens: Complete sequences, shape (b, length).
        prefixes: How many different prefixes, of any length, the complete sequences have.
        tried: How many prefixes were tried.
        dropped: Prefixes that were dropped because there were too many; without any sequences,
            how many would have had to be tried.
    """

    tokens: Tokens
    prefixes: int
    tried: int
    dropped: int


def tokens_by_position(reader: Reader, span: InputSpan) -> list[Tokens]:
    """For each position the tokens whose input there lies in the span, ascending."""
    layer, found = reader.layers.first[0], []
    block = max(1, _BLOCK // (reader.length * span.inside.shape[0]))
    for start in range(0, reader.vocabulary, block):
        tokens = np.arange(start, min(start + block, reader.vocabulary))
        # inputs are of single tokens: a sequence of one token over and over shows all positions
        same = np.repeat(tokens[:, None], reader.length, axis=1)
        inputs = _inputs(reader, same, layer)
        holds = span.holds(inputs.reshape(-1, inputs.shape[-1]))
        found.append(holds.reshape(len(tokens), reader.length))
    held = np.concatenate(found)
    if reader.silent is not None:
        held[reader.silent] = False  # it gives no gradient: if it fits, that is by chance
    return [np.flatnonzero(column) for column in held.T]


def any_inputs(reader: Reader, layer: str) -> Values:
    """What flows into a layer for sequences that have nothing to do with the data, (n, d).

    More than d of them, of tokens from all over the vocabulary.
    """
    width = reader.module.get_parameter(f"{layer}.weight").shape[1]
    num = -(-2 * width // reader.length)
    tokens = np.arange(num * reader.length) * _STRIDE % reader.vocabulary
    inputs = _inputs(reader, tokens.reshape(num, reader.length), layer)
    return inputs.reshape(-1, width).astype(np.float64)


def sequences(
    reader: Reader, span: InputSpan, candidates: Sequence[Tokens], *, most: int
) -> Sequences:
    """Put sequences together from the left.

    Args:
        reader: A causal model.
        span: Of the second layer's inputs.
        candidates: Tokens to try at each position.
        most: Prefixes to keep at each position: those nearest to the span.
    """
    prefixes, ended, num_tried, dropped = np.zeros((1, 0), dtype=np.int64), [], 0, 0
    for position, tokens in enumerate(candidates):
        if len(prefixes) * len(tokens) > _MOST_TRIED:
            return Sequences(
                _filled(reader, prefixes[:0]), 0, num_tried, len(prefixes) * len(tokens)
            )
        tried = _extended(prefixes, tokens)
        num_tried += len(tried)
        holds, near = _fit(reader, span, tried)
        kept, near = tried[holds], near[holds]
        if reader.masks_padding and position:
            ended.append(_filled(reader, _without(prefixes, kept[:, :-1])))
        chosen = np.sort(np.argsort(near, kind="stable")[:most])
        dropped += len(kept) - len(chosen)
        prefixes = kept[chosen]
        if not len(prefixes):
            break
    else:
        ended.append(prefixes)
    found = np.concatenate([np.zeros((0, reader.length), dtype=np.int64), *ended])
    return Sequences(found, num_prefixes(found, reader.silent), num_tried, dropped)


def surest_first(reader: Reader, span: InputSpan, tokens: Tokens) -> Tokens:
    """Sequences in the order of their farthest prefix's distance to the span."""
    inputs = _inputs(reader, tokens, reader.layers.second[0])
    distances = span.distances(inputs.reshape(-1, inputs.shape[-1])).reshape(tokens.shape)
    if reader.silent is not None:
        distances[tokens == reader.silent] = 0.0
    return tokens[np.argsort(distances.max(axis=1), kind="stable")]


def num_prefixes(tokens: Tokens, padding: int | None) -> int:
    """Different prefixes of some sequences; those that end in padding do not count."""
    seen = set()
    for sequence in tokens.tolist():
        for length, token in enumerate(sequence, start=1):
            if token != padding:
                seen.add(tuple(sequence[:length]))
    return len(seen)


def _fit(reader: Reader, span: InputSpan, prefixes: Tokens) -> tuple[NDArray[np.bool_], Values]:
    """Whether the second layer's input at the end of each prefix lies in the span, and how far."""
    holds, distances = [np.zeros(0, dtype=bool)], [np.zeros(0)]
    given = prefixes if reader.takes_short else _filled(reader, prefixes)
    block = max(1, _BLOCK // (given.shape[1] * span.inside.shape[0]))
    for start in range(0, len(given), block):
        inputs = _inputs(reader, given[start : start + block], reader.layers.second[0])
        last = inputs[:, prefixes.shape[1] - 1]
        holds.append(span.holds(last))
        distances.append(span.distances(last))
    return np.concatenate(holds), np.concatenate(distances)


def _extended(prefixes: Tokens, tokens: Tokens) -> Tokens:
    """Each prefix with each token behind it."""
    before = np.repeat(prefixes, len(tokens), axis=0)
    return np.column_stack([before, np.tile(tokens, len(prefixes))])


def _filled(reader: Reader, prefixes: Tokens) -> Tokens:
    """Prefixes as the model takes them; what stands behind them has no effect on them."""
    filler = 0 if reader.padding is None else reader.padding
    missing = np.full((len(prefixes), reader.length - prefixes.shape[1]), filler)
    return np.column_stack([prefixes, missing])


def _without(prefixes: Tokens, extended: Tokens) -> Tokens:
    """Prefixes that nothing extends: texts that end here, where padding leaves no trace."""
    going_on = {tuple(prefix) for prefix in extended.tolist()}
    return np.asarray(
        [prefix for prefix in prefixes.tolist() if tuple(prefix) not in going_on], dtype=np.int64
    ).reshape(-1, prefixes.shape[1])


def _inputs(reader: Reader, tokens: Tokens, layer: str) -> NDArray[np.floating]:
    """What flows into a layer, in the model's own precision, shape (n, length, d)."""
    device = next(reader.module.parameters()).device
    given = torch.from_numpy(tokens.astype(np.float64)).to(device)
    result: NDArray[np.floating] = reader.inputs(given, layer).cpu().numpy()
    return result

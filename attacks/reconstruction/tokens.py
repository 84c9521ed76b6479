"""Exact recovery of sequences of tokens from the gradient of a transformer's first two attentions.

The gradient of an attention's projections spans the inputs that flowed into them (token_spans.py).
In the first layer an input is made of one token and its position, so each pair of them is tried
against the span. In the second layer of a causal model it is made of a prefix, so sequences are
put together from the left (token_search.py). Scale and sign of the gradient do not matter: one
step's update serves as well. What it needs is fewer tokens in the batch than the model is wide.

Queries, keys and values share their input, so their gradients are taken together. Queries alone
would not do: the first token attends to itself only, so its query gets no gradient.

References:
    Petrov et al., "DAGER: Exact Gradient Inversion for Large Language Models", NeurIPS 2024.
    https://arxiv.org/abs/2405.15586
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.federated.row_space_decay import granted_multiple
from attacks.federated.rounds import SUM, Source
from attacks.reconstruction.observed import (
    Observed,
    UpdateSettings,
    both_seats,
    observed,
    seat_notes,
    seated,
)
from attacks.reconstruction.token_layers import Reader, TextLayers, read
from attacks.reconstruction.token_search import (
    num_prefixes,
    sequences,
    surest,
    tokens_by_position,
)
from attacks.reconstruction.token_spans import InputSpan, layer_span
from fl_audit.attack_spec import AttackInput, Reconstruction, Reconstructions
from fl_audit.errors import InputError
from fl_audit.trace.query import load_weights

Values = NDArray[np.float64]
Tokens = NDArray[np.int64]
_SUM_ROUNDINGS = 3.0  # each client's weights, their mean, and what the seat takes out of it


class Settings(UpdateSettings):
    """Where in the model to look, and how far to search."""

    length: int | None = Field(default=None, ge=2)
    """Tokens of a sequence; by default the rows of the model's position embedding."""
    padding: int | None = Field(default=None, ge=0)
    """Token that fills sequences up; by default that of the model's token embedding, if any."""
    first: list[str] = Field(default_factory=list)
    """Dense layers that take single tokens: names of modules; found by default."""
    second: list[str] = Field(default_factory=list)
    """Dense layers behind the first attention, with one input in common; found by default."""
    rtol: float = Field(default=1e-7, gt=0, lt=1)
    """Singular values of a gradient below this share of the largest are noise."""
    most_sequences: int = Field(default=64, ge=1)
    """Prefixes to follow at once."""


@dataclass(frozen=True, slots=True, eq=False)
class RecoveredTokens:
    """What one gradient gave back.

    Attributes:
        sequences: Different sequences, in no order, shape (b, length); b is 0 if `why` says why.
        tokens: Tokens that the batch holds, ascending, without padding.
        rank: Linearly independent inputs of the second layer, or of the first if that is all.
        explained: Different prefixes of the sequences. Where it equals the rank, the sequences
            account for the whole gradient.
        dropped: Prefixes that were given up because too many fitted.
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
        leaves no trace, a text that is the beginning of another is not found.

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
    if not first.slack:
        width = first.inside.shape[0]
        return _nothing(
            reader,
            first.rank,
            f"the gradient has full rank, {width}: it was made of {width} or more different tokens "
            "and positions, or holds noise, weight decay or several steps",
        )
    candidates = tokens_by_position(reader, first)
    if not any(len(tokens) for tokens in candidates):
        return _nothing(
            reader, first.rank, "no token lies in the span: the update is not of one gradient step"
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
    found = sequences(reader, span, candidates, most=most)
    tokens = _without_padding(reader, np.concatenate(candidates))
    if not len(found.tokens):
        why = (
            "too many tokens fit at a position to try them all"
            if found.dropped
            else "no sequence fits the second layer"
        )
        return RecoveredTokens(found.tokens, tokens, span.rank, dropped=found.dropped, why=why)
    kept = found.tokens
    if batch_size is not None and len(kept) > batch_size:
        kept = surest(reader, span, kept, batch_size)
    explained = num_prefixes(kept, reader.silent)
    if explained == span.rank:  # nothing is left that other tokens would be needed for
        tokens = _without_padding(reader, kept)
    return RecoveredTokens(kept, tokens, span.rank, explained, found.dropped)


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


@dataclass(slots=True, eq=False)
class _Tally:
    """What came of the updates, for the notes."""

    whole: int = 0
    partial: int = 0
    tokens_only: int = 0
    ranks: list[int] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, found: RecoveredTokens) -> None:
        self.ranks.append(found.rank)
        if found.why is not None:
            self.reasons[found.why] += 1
            self.tokens_only += bool(len(found.tokens))
        elif found.is_whole:
            self.whole += 1
        else:
            self.partial += 1

    def notes(self, reader: Reader, rtol: float) -> list[str]:
        width = reader.module.get_parameter(f"{reader.layers.first[0]}.weight").shape[1]
        lines = [
            f"Looked at {', '.join(reader.layers.first)} and then at "
            f"{', '.join(reader.layers.second) or 'no second layer'}; width {width}, "
            f"relative tolerance {rtol:g}."
        ]
        if self.ranks:
            lines.append(f"Ranks of the updates: {min(self.ranks)} to {max(self.ranks)}.")
        if self.whole:
            lines.append(f"In {self.whole} updates the sequences account for the whole rank.")
        if self.partial:
            lines.append(
                f"In {self.partial} updates they do not: some sequences are missing or wrong."
            )
        lines += [f"{count} updates: {why}." for why, count in self.reasons.items()]
        if self.tokens_only:
            lines.append(
                f"For {self.tokens_only} of these only tokens are claimed: those that fit at some "
                "position, a few of which may fit by chance."
            )
        return lines


def _run(given: AttackInput, source: Source) -> Reconstructions:
    settings: Settings = given.settings
    view, tally, claims = seated(given.view, source, settings), _Tally(), []
    reader: Reader | None = None
    for target in observed(given, source):
        module = view.architecture()
        load_weights(module, target.model)
        reader = read(
            module.to(given.device),
            length=settings.length,
            padding=settings.padding,
            layers=_layers(settings),
        )
        decay = granted_multiple(view, target.round, target.behind)
        found = _recover(target, reader, settings, decay or 0.0)
        tally.add(found)
        if len(found.tokens):
            claims.append(
                Reconstruction(
                    target.round,
                    target.client,
                    found.sequences.astype(np.float64) if len(found.sequences) else None,
                    tokens=found.tokens,
                    behind=target.behind,
                )
            )
    notes = [] if reader is None else tally.notes(reader, settings.rtol)
    return Reconstructions(
        tuple(claims), (*notes, *seat_notes(given.view, source, settings)), contents="tokens"
    )


def _recover(target: Observed, reader: Reader, settings: Settings, decay: float) -> RecoveredTokens:
    update: dict[str, Values] = {}
    for layer in (*reader.layers.first, *reader.layers.second):
        name = f"{layer}.weight"
        if name in target.update:
            update[name] = target.update[name] - decay * target.model[name].astype(np.float64)
    count = target.num_examples
    return recover_tokens(
        reader,
        update,
        batch_size=None if count is None else int(count),
        roundings=_SUM_ROUNDINGS if target.client == SUM else 1.0,
        rtol=settings.rtol,
        most_sequences=settings.most_sequences,
    )


def _layers(settings: Settings) -> TextLayers | None:
    if not settings.first and not settings.second:
        return None
    return TextLayers(tuple(settings.first), tuple(settings.second))


ATTACK, LOCAL_ATTACK = both_seats(
    "token_recovery",
    _run,
    reference="https://arxiv.org/abs/2405.15586",
    summary="Attention gradients of a transformer give back whole sequences of tokens, exactly",
    settings=Settings,
)

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
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from attacks.federated.rounds import SUM, Source
from attacks.federated.row_space_decay import granted_multiple
from attacks.reconstruction.observed import (
    Observed,
    UpdateSettings,
    both_seats,
    observed,
    seat_notes,
    seated,
)
from attacks.reconstruction.token_layers import Reader, TextLayers, read
from attacks.reconstruction.token_recovery import RecoveredTokens, recover_tokens
from fl_audit.attack_spec import AttackInput, Reconstruction, Reconstructions
from fl_audit.trace.query import load_weights

Values = NDArray[np.float64]
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
                f"In {self.partial} updates they do not: sequences are missing, cut short or "
                "wrong, or there were several steps."
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
    view, tally = seated(given.view, source, settings), _Tally()
    claims, tried = [], []
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
        tried.append(target.tried)
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
    notes += seat_notes(given.view, source, settings)
    return Reconstructions(tuple(claims), tuple(notes), contents="tokens", tried=tuple(tried))


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

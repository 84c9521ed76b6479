"""Which tokens the data behind an update hold, read off the embedding rows that moved.

The row of a token that no example holds gets no gradient, so with SGD the rows that moved name the
tokens exactly, whatever the number of examples, steps and epochs (attacks/federated/embeddings.py).
Neither their order nor how often they occur is claimed.

References:
    Melis, Song, De Cristofaro, Shmatikov, "Exploiting unintended feature leakage in collaborative
    learning", IEEE S&P 2019, section 4.1. https://arxiv.org/abs/1805.04049
"""

from __future__ import annotations

from attacks.federated.embeddings import present_tokens
from attacks.federated.rounds import Source
from attacks.reconstruction.observed import UpdateSettings, both_seats, observed, seat_notes, seated
from fl_audit.attack_spec import AttackInput, Reconstruction, Reconstructions


class Settings(UpdateSettings):
    """Which updates and embedding to use."""

    layer: str | None = None
    """Parameter name of the embedding matrix; by default the model's first embedding."""


def _run(given: AttackInput, source: Source) -> Reconstructions:
    settings: Settings = given.settings
    view = seated(given.view, source, settings)
    told = present_tokens(view, layer=settings.layer, rounds=settings.rounds, source=source)
    claims, tried, counts, silent = [], [], [], 0
    for target in observed(given, source):
        tried.append(target.tried)
        tokens = told.get((target.round, target.client))
        if tokens is None:
            silent += 1
            continue
        counts.append(len(tokens))
        claims.append(
            Reconstruction(target.round, target.client, tokens=tokens, behind=target.behind)
        )
    notes = []
    if counts:
        notes.append(f"From {min(counts)} to {max(counts)} tokens are present in an update.")
    if silent:
        notes.append(
            f"{silent} updates are zero or move every row (noise, an output layer that shares the "
            "weights, data that hold the whole vocabulary): no claim is made about them."
        )
    notes += seat_notes(given.view, source, settings)
    return Reconstructions(tuple(claims), tuple(notes), contents="tokens", tried=tuple(tried))


ATTACK, LOCAL_ATTACK = both_seats(
    "token_sets",
    _run,
    reference="https://arxiv.org/abs/1805.04049",
    summary="Embedding rows that moved name the tokens that the data hold",
    settings=Settings,
)

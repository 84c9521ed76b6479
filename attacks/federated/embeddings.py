"""Embedding matrices: which rows an update moved, and so which tokens the data behind it hold.

With SGD, with or without momentum, and with Adam, the row of a token that no example holds stays
what it was. Weight decay moves every row, but those rows by the same multiple c of themselves (see
row_space_decay.py), which is known, or found where most rows agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.federated.rounds import SUM, Source, chosen_rounds, round_updates
from attacks.federated.row_space_decay import granted_multiple
from attacks.federated.seats import nearest_source
from attacks.federated.spans import ROUNDING_STEPS
from fl_audit.errors import InputError
from fl_audit.trace import TraceView

Values = NDArray[np.float64]
Tokens = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Embedding:
    """An embedding matrix of a model.

    Attributes:
        name: Of its parameter.
        padding: Token whose row never gets a gradient, if there is one.
    """

    name: str
    padding: int | None = None


def find_embedding(view: TraceView, layer: str | None = None) -> Embedding:
    """The embedding that `layer` names, or the first of the model.

    Raises:
        ObservationError: If the view does not grant the architecture.
        InputError: If the model has no such embedding.
    """
    import torch

    kinds = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    found = {
        f"{name}.weight".lstrip("."): module.padding_idx
        for name, module in view.architecture().named_modules()
        if isinstance(module, kinds) and module.weight.is_floating_point()
    }
    name = next(iter(found), None) if layer is None else layer
    if name not in found:
        raise InputError(
            "layer",
            layer,
            "the model has no embedding"
            if layer is None or not found
            else "is not the weight of an embedding",
            f"Embeddings of this model: {', '.join(found) or 'none'}. This attack is for models of "
            "tokens; row_space is for models that start with a dense layer.",
        )
    return Embedding(name, found[name])


def present_tokens(
    view: TraceView,
    *,
    layer: str | None = None,
    rounds: Sequence[int] | None = None,
    source: Source | None = None,
) -> dict[tuple[int, int], Tokens]:
    """Tokens in the data behind each update.

    Args:
        layer: Parameter name of the embedding; the model's first by default.
        rounds: Rounds to use; all by default.
        source: Each client's update, or the sum of the honest set's; by default the former where
            the view grants it.

    Returns:
        (round, client) -> tokens, ascending; client -1 is the sum. Updates that are zero, or in
        which every row moved, are left out. A padding token is never among the tokens.

    Raises:
        ObservationError: If the view does not grant the updates or the global model.
        InputError: If the model has no embedding, or a round is unknown.
    """
    embedding = find_embedding(view, layer)
    moved = told_rows(view, embedding, rounds, source or nearest_source(view))
    return {key: np.flatnonzero(rows) for key, rows, _ in moved if rows is not None}


def moved_rows(
    update: Values, rows: NDArray[Any], multiple: float, *, exact: bool
) -> NDArray[np.bool_]:
    """Rows of an embedding that moved by more than rounding, after weight decay.

    Args:
        update: Shape (tokens, width).
        rows: The rows before, the same shape; their size and dtype set the rounding level.
        multiple: c of weight decay, in units of the rows.
        exact: Rows that did not move are the same to the bit: a client's update without decay.

    Returns:
        bool, shape (tokens,).
    """
    rest = update - multiple * rows.astype(np.float64)
    result: NDArray[np.bool_] = np.linalg.norm(rest, axis=1) > (0.0 if exact else _levels(rows))
    return result


def fitted_row_multiple(update: Values, rows: NDArray[Any]) -> float | None:
    """c such that most rows moved by c times themselves; None if no two rows agree on one.

    Args:
        update: Shape (tokens, width).
        rows: The rows before, the same shape.
    """
    before = rows.astype(np.float64)
    squares = np.sum(np.square(before), axis=1)
    own = np.divide(
        np.sum(update * before, axis=1), squares, out=np.zeros_like(squares), where=squares > 0
    )
    level = _levels(rows)
    parallel = np.linalg.norm(update - own[:, None] * before, axis=1) <= level
    multiples = np.sort(own[parallel & (squares > 0)])
    if not len(multiples):
        return None
    width = 2 * _relative(rows)
    ends = np.searchsorted(multiples, multiples + 2 * width, side="right")
    start = int(np.argmax(ends - np.arange(len(multiples))))
    alike = multiples[start : ends[start]]
    return float(np.median(alike)) if len(alike) > 1 else None


def told_rows(
    view: TraceView, embedding: Embedding, rounds: Sequence[int] | None, source: Source
) -> Iterator[tuple[tuple[int, int], NDArray[np.bool_] | None, int]]:
    """Which rows of an embedding moved in each update.

    Yields:
        ((round, client), True where a token's row moved, shape (tokens,), number of tokens); None
        in place of the rows where the update is zero or moves every row.
    """
    for number in chosen_rounds(view, rounds):
        for model, updates in round_updates(view, number, source):
            rows = model[embedding.name]
            for client, update in updates.items():
                behind = view.summed(number) if client == SUM else (client,)
                known = granted_multiple(view, number, behind)
                moved = _telling(update[embedding.name], rows, known, is_sum=client == SUM)
                if moved is not None and embedding.padding is not None:
                    moved[embedding.padding] = False
                yield (number, client), moved, len(rows)


def _telling(
    update: Values, rows: NDArray[Any], known: float | None, *, is_sum: bool
) -> NDArray[np.bool_] | None:
    """Rows that moved, under the first multiple for decay that leaves some where they were."""
    if not np.isfinite(rows).all() or not np.isfinite(update).all() or not update.any():
        return None
    nonzero = rows.any(axis=1)  # a row of zeros (padding) stays where it is whatever happens
    for multiple in _multiples(update, rows, known):
        moved = moved_rows(update, rows, multiple, exact=multiple == 0 and not is_sum)
        if moved.any() and not moved[nonzero].all():
            return moved
    return None


def _multiples(update: Values, rows: NDArray[Any], known: float | None) -> Iterator[float]:
    if known:
        yield known
    yield 0.0
    fitted = fitted_row_multiple(update, rows)
    if fitted is not None:
        yield fitted


def _relative(rows: NDArray[Any]) -> float:
    """Largest change of a row that rounding makes, as a share of its norm."""
    return float(np.finfo(rows.dtype).eps / 2 * np.sqrt(ROUNDING_STEPS))


def _levels(rows: NDArray[Any]) -> Values:
    """The same for each row, shape (tokens,)."""
    result: Values = _relative(rows) * np.linalg.norm(rows.astype(np.float64), axis=1)
    return result

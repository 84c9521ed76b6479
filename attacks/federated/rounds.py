"""What a round says about each candidate: the numbers that attacks on updates are made of.

One pass over a round takes the gradient of every candidate at the model that was sent out, and
compares it with every update, parameter by parameter, so that any subset of layers is a sum.
Nothing outlives its round: memory is that of one round, time is linear in rounds and updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.federated.gradients import check_labels, per_example_gradients
from attacks.membership.signals import true_log_probability
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.trace import TraceView
from fl_audit.trace.query import logits

Source = Literal["clients", "sum"]
SUM = -1
"""Stands for the client where the update is the sum of the honest set's."""

Values = NDArray[np.float64]


class Where(TypedDict, total=False):
    """What of a trace an attack looks at: keywords that attacks on gradients share.

    Attributes:
        layers: Parameter names to compare; all by default.
        rounds: Rounds to look at; all in view by default.
        source: Each client's update, or the sum of the honest set's.
        device: "cpu" or "cuda".
    """

    layers: Sequence[str] | None
    rounds: Sequence[int] | None
    source: Source
    device: str


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """How candidates' descent directions -g(x) lie to the updates of one round.

    Attributes:
        round: Server round.
        clients: Whose updates, shape (m,); (SUM,) for the sum.
        names: Parameters, shape (p,).
        dots: <update, -g(x)>, shape (p, m, n).
        gradient_squares: ||g(x)||^2, shape (p, m, n) or (p, 1, n) where all got one model.
        update_squares: ||update||^2, shape (p, m).
    """

    round: int
    clients: tuple[int, ...]
    names: tuple[str, ...]
    dots: Values
    gradient_squares: Values
    update_squares: Values

    def cosines(self) -> Values:
        """Cosine of -g(x) with each update, over all parameters, shape (m, n)."""
        return _ratio(
            self.dots.sum(axis=0),
            np.sqrt(self.gradient_squares.sum(axis=0))
            * np.sqrt(self.update_squares.sum(axis=0))[:, None],
        )

    def layer_cosines(self) -> Values:
        """The same for each parameter, shape (p, m, n); 0 where a side is zero."""
        return _ratio(
            self.dots, np.sqrt(self.gradient_squares) * np.sqrt(self.update_squares)[:, :, None]
        )


def alignments(
    view: TraceView,
    candidates: Records,
    *,
    layers: Sequence[str] | None = None,
    rounds: Sequence[int] | None = None,
    source: Source = "clients",
    device: str = "cpu",
) -> Iterator[Alignment]:
    """Alignment of every round with a usable, non-zero update.

    Args:
        layers: Parameter names to compare; all by default.
        rounds: Rounds to look at; all in view by default.
        source: Each client's update, or the sum of the honest set's.

    Raises:
        ObservationError: If the view does not grant the updates.
        InputError: If a layer or round is unknown, or the candidates do not fit the model.
    """
    module = view.architecture()
    names = parameter_names(module, layers)
    for server_round in chosen_rounds(view, rounds):
        found = [
            _align(module, server_round, names, model, updates, candidates, device)
            for model, updates in round_updates(view, server_round, source)
        ]
        parts = [part for part in found if part is not None]
        if parts:
            yield _together(parts)


def losses(
    view: TraceView,
    candidates: Records,
    *,
    rounds: Sequence[int] | None = None,
    source: Source = "clients",
    device: str = "cpu",
) -> Iterator[tuple[int, tuple[int, ...], Values]]:
    """Cross-entropy of the candidates at what came back each round.

    Yields:
        (round, clients, losses in nats of shape (m, n)): of each client's model, or (source
        "sum") of the next global model.
    """
    module = view.architecture()

    def of(arrays: Mapping[str, NDArray[np.generic]]) -> Values:
        return record_losses(module, arrays, candidates, device=device)

    for server_round in chosen_rounds(view, rounds):
        if source == "sum":
            after = view.aggregate(server_round)
            if after is not None and _is_finite(after):
                yield server_round, (SUM,), of(after)[None]
            continue
        clients = view.clients(server_round)
        if clients:
            models = (view.client_model(server_round, client) for client in clients)
            yield server_round, clients, np.stack([of(model) for model in models])


def record_losses(
    module: torch.nn.Module,
    arrays: Mapping[str, NDArray[np.generic]],
    records: Records,
    *,
    device: str = "cpu",
) -> Values:
    """Cross-entropy of each record at the given weights, nats, shape (n,).

    Raises:
        InputError: If the records do not fit the model.
    """
    try:
        found = logits(module, arrays, records.inputs, device=device)
    except (RuntimeError, IndexError) as error:
        raise InputError(
            "candidates",
            records.inputs.shape,
            f"the model refuses inputs of this shape ({error})",
            "Give records of the shape that the model was trained on.",
        ) from error
    check_labels(records, found.shape[1])
    return -true_log_probability(found, records.labels)


def parameter_names(module: torch.nn.Module, layers: Sequence[str] | None) -> list[str]:
    """Names of the parameters to compare.

    Raises:
        InputError: If a layer is unknown, or the list is empty.
    """
    known = [name for name, _ in module.named_parameters()]
    for name in known if layers is None else layers:
        if name not in known:
            raise InputError(
                "layers", name, "the model has no such parameter", f"It has: {', '.join(known)}"
            )
    chosen = known if layers is None else [name for name in known if name in layers]
    if not chosen:
        raise InputError("layers", [], "names no parameter", f"The model has: {', '.join(known)}")
    return chosen


def chosen_rounds(view: TraceView, rounds: Sequence[int] | None) -> tuple[int, ...]:
    """The rounds to look at, ascending.

    Raises:
        InputError: If one is not in view, or the list is empty.
    """
    if rounds is not None and not len(rounds):
        raise InputError(
            "rounds",
            [],
            "names no round",
            f"Leave it out for all, or name some of the rounds in view: {list(view.rounds)}.",
        )
    for number in rounds or ():
        if number not in view.rounds:
            raise InputError(
                "rounds",
                number,
                "this view has no model of that round",
                f"Rounds in view: {list(view.rounds)}.",
            )
    return view.rounds if rounds is None else tuple(sorted(set(rounds)))


def round_updates(
    view: TraceView, server_round: int, source: Source
) -> Iterator[tuple[Mapping[str, NDArray[np.generic]], dict[int, Mapping[str, Values]]]]:
    """Models that were sent out in a round, each with the updates that came back for it."""
    if source == "sum":
        update = view.sum_update(server_round)
        if update is not None:
            yield view.global_model(server_round), {SUM: update}
        return
    for model, clients in view.received_groups(server_round):
        yield model, {client: view.client_update(server_round, client) for client in clients}


def _align(
    module: torch.nn.Module,
    server_round: int,
    names: list[str],
    model: Mapping[str, NDArray[np.generic]],
    updates: Mapping[int, Mapping[str, Values]],
    candidates: Records,
    device: str,
) -> Alignment | None:
    if not all(np.isfinite(model[name]).all() for name in names):
        return None
    directions: dict[int, list[Values]] = {}
    for client, update in updates.items():
        parts = [np.asarray(update[name]).ravel() for name in names]
        if all(np.isfinite(part).all() for part in parts) and any(part.any() for part in parts):
            directions[client] = parts
    if not directions:
        return None
    num, total = len(candidates), len(directions)
    dots = np.empty((len(names), total, num))
    squares = np.empty((len(names), 1, num))
    # float64 norms, and directions of length 1 in float32: the square of an update may be huge
    norms = np.array([[np.linalg.norm(p) for p in parts] for parts in directions.values()]).T
    unit = []
    for place in range(len(names)):
        safe = np.where(norms[place] > 0, norms[place], 1.0)
        matrix = np.stack([parts[place] for parts in directions.values()]) / safe[:, None]
        unit.append(torch.from_numpy(matrix).float().to(device))
    for rows, gradients in per_example_gradients(module, model, candidates, device=device):
        for place, name in enumerate(names):
            flat = gradients[name].flatten(1)
            along = (unit[place] @ flat.T).double().cpu().numpy()
            dots[place][:, rows] = -along * norms[place][:, None]
            squares[place, 0, rows] = flat.double().square().sum(1).cpu().numpy()
    return Alignment(server_round, tuple(directions), tuple(names), dots, squares, np.square(norms))


def _together(parts: Sequence[Alignment]) -> Alignment:
    """One alignment of a round in which clients received different models."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort([client for part in parts for client in part.clients])
    squares = [np.repeat(p.gradient_squares, len(p.clients), axis=1) for p in parts]
    clients = [client for part in parts for client in part.clients]
    return Alignment(
        parts[0].round,
        tuple(clients[place] for place in order),
        parts[0].names,
        np.concatenate([part.dots for part in parts], axis=1)[:, order],
        np.concatenate(squares, axis=1)[:, order],
        np.concatenate([part.update_squares for part in parts], axis=1)[:, order],
    )


def _is_finite(arrays: Mapping[str, NDArray[np.generic]]) -> bool:
    return all(bool(np.isfinite(arrays[name]).all()) for name in arrays)


def _ratio(value: Values, size: Values) -> Values:
    """value / size, 0 where size is 0."""
    result: Values = np.divide(value, size, out=np.zeros_like(value), where=size > 0)
    return result

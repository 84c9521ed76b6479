"""Gradient regression: which candidates' gradients an update is a sum of, all asked at once.

A client's update is about the sum of its examples' descent directions -g(x). Cosines ask of each
candidate alone whether the update points its way, and what candidates have in common - their
class, the direction that all gradients share - drowns the answer. Here the update is regressed on
the descent directions of all candidates together, so that each is credited only with what no other
explains: with G of shape (n, d) and update u,

    a = argmin ||u - G'a||^2 + s ||a||^2 = (G G' + s I)^-1 G u.

The ridge s keeps near-equal gradients from cancelling each other, and is the Gaussian prior under
which a is the most likely one if the update carries white noise. Many local steps move the model,
so gradients are taken at both ends of the client's path and averaged.

What no candidate explains (other training records, drift over many steps, noise) is left to the
residual, so the attack does not need to know the client's whole data, and no layer of any kind.
Where there are more parameters than `_MOST_DIMENSIONS`, they are hashed into so many by a count
sketch, which keeps inner products in expectation; a few thousand times the candidates is plenty.

References:
    Hoerl, Kennard, "Ridge regression", Technometrics 1970, eq. (2.1).
    Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", ICALP 2002 (sketch).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from attacks.candidates import require_candidates
from attacks.federated.answers import LayerSettings, RoundValues, answer, average, both_seats, where
from attacks.federated.gradients import per_example_gradients
from attacks.federated.rounds import Source, Where, chosen_rounds, parameter_names, round_updates
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.trace import TraceView

Place = Literal["path", "start"]
Arrays = Mapping[str, NDArray[np.generic]]
_MOST_DIMENSIONS = 16_384
_DIMENSIONS_OF_MANY = 4_096  # for so many candidates that (n, d) would fill the memory
_MANY = 4_096


class Settings(LayerSettings):
    """Rounds, layers, where gradients are taken, and the ridge."""

    at: Place = "path"
    """"path": mean of the gradients at the received and the returned model; "start": received."""
    ridge: float = Field(default=0.01, gt=0)
    """In units of the mean squared gradient norm of the candidates."""


def gradient_regression_scores(
    view: TraceView,
    candidates: Records,
    *,
    rng: np.random.Generator,
    asked: NDArray[np.int64] | None = None,
    at: Place = "path",
    ridge: float = 0.01,
    layers: Sequence[str] | None = None,
    rounds: Sequence[int] | None = None,
    source: Source = "clients",
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Each candidate's coefficient in the ridge regression of updates on gradients.

    Args:
        rng: Draws the sketch of models with many parameters.
        asked: Client in question for each candidate, shape (n,); None: any client, so the
            largest over clients counts.
        at: Where gradients are taken: at both ends of the client's path, or where it starts.
        ridge: Penalty, in units of the mean squared gradient norm.
        layers, rounds, source: As for `cosine_scores`.

    Returns:
        Coefficients in units of their root mean square in the round, averaged over rounds, shape
        (n,); higher = more likely a member.

    Raises:
        ObservationError: If the view does not grant the updates.
        InputError: If there is no signal, or a layer or round is unknown.
    """
    settings = Settings(at=at, ridge=ridge)
    look = Where(layers=layers, rounds=rounds, source=source, device=device)
    found = average(_coefficients(view, candidates, settings, rng=rng, **look))
    return answer(found.clients, found.means, asked)


def ridge_coefficients(
    directions: torch.Tensor, update: torch.Tensor, ridge: float
) -> NDArray[np.float64]:
    """Solve min ||u - G'a||^2 + s ||a||^2, s = ridge * mean squared row norm.

    Args:
        directions: G, float32, shape (n, d).
        update: u, float32, shape (d,).

    Returns:
        a, float64, shape (n,), by whichever of G G' (n, n) and G'G (d, d) is the smaller.

    Raises:
        InputError: If every direction is zero.
    """
    is_wide = len(directions) <= directions.shape[1]
    gram = _gram(directions if is_wide else directions.T)
    penalty = ridge * float(gram.diagonal().sum()) / len(directions)
    if penalty == 0:
        raise InputError(
            "gradients",
            "all zeros",
            "no candidate has a gradient at this model",
            "Leave this round out.",
        )
    gram.diagonal().add_(penalty)
    if is_wide:
        return _solve(gram, (directions @ update).double()).cpu().numpy()
    # (G G' + s I)^-1 G u = G (G'G + s I)^-1 u
    found = directions.double() @ _solve(gram, update.double())
    return found.cpu().numpy()


def _gram(rows: torch.Tensor) -> torch.Tensor:
    """rows rows', float64 from float32 products."""
    if rows.device.type == "cpu":
        values = rows.numpy()
        return torch.from_numpy(values @ values.T).double()  # numpy does a half, torch the whole
    return (rows @ rows.T).double()


def _solve(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    factor = torch.linalg.cholesky(matrix)
    return torch.cholesky_solve(right[:, None], factor)[:, 0]


class _Sketch:
    """Hashes d parameters into fewer dimensions, with random signs; the identity if d is small."""

    def __init__(self, total: int, num: int, *, rng: np.random.Generator, device: str) -> None:
        most = _MOST_DIMENSIONS if num <= _MANY else _DIMENSIONS_OF_MANY
        self.size = min(total, most)
        self._places: torch.Tensor | None = None
        if total > most:
            self._places = torch.from_numpy(rng.integers(most, size=total)).to(device)
            signs = rng.integers(2, size=total) * 2 - 1
            self._signs = torch.from_numpy(signs).float().to(device)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of shape (b, d) to (b, size)."""
        if self._places is None:
            return rows
        out = torch.zeros(len(rows), self.size, dtype=rows.dtype, device=rows.device)
        return out.index_add_(1, self._places, rows * self._signs)


def _coefficients(
    view: TraceView,
    candidates: Records,
    settings: Settings,
    *,
    rng: np.random.Generator,
    **look: Unpack[Where],
) -> Iterator[RoundValues]:
    device = look["device"]
    module = view.architecture()
    names = parameter_names(module, look["layers"])
    shapes = dict(module.named_parameters())
    total = sum(shapes[name].numel() for name in names)
    sketch = _Sketch(total, len(candidates), rng=rng, device=device)

    def directions(arrays: Arrays) -> torch.Tensor:
        rows = torch.empty(len(candidates), sketch.size, device=device)
        for part, gradients in per_example_gradients(module, arrays, candidates, device=device):
            flat = torch.cat([gradients[name].flatten(1) for name in names], dim=1)
            rows[part] = -sketch(flat)
        return rows

    for number in chosen_rounds(view, look["rounds"]):
        found: dict[int, NDArray[np.float64]] = {}
        for received, updates in round_updates(view, number, look["source"]):
            if not all(np.isfinite(received[name]).all() for name in names):
                continue
            start = directions(received)
            for client, update in updates.items():
                flat = np.concatenate([update[name].ravel() for name in names])
                size = float(np.linalg.norm(flat))
                if not 0 < size < np.inf:
                    continue
                used = start
                if settings.at == "path":
                    used = (start + directions(_returned(view, number, client))) / 2
                direction = torch.from_numpy((flat / size).astype(np.float32)).to(device)
                found[client] = _standard(
                    ridge_coefficients(used, sketch(direction[None])[0], settings.ridge)
                )
        if found:
            clients = tuple(sorted(found))
            yield number, clients, np.stack([found[client] for client in clients])


def _returned(view: TraceView, server_round: int, client: int) -> Arrays:
    """The model at the end of the path: the client's reply, or the next global model."""
    if client >= 0:
        return view.client_model(server_round, client)
    after = view.aggregate(server_round)
    assert after is not None  # there is no sum update without it
    return after


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    size = float(np.sqrt(np.mean(np.square(values))))
    return values / size if size > 0 else values


def _values(given: AttackInput, source: Source) -> Iterator[RoundValues]:
    look, candidates = where(given, source), require_candidates(given)
    return _coefficients(given.view, candidates, given.settings, rng=given.rng, **look)


ATTACK, LOCAL_ATTACK = both_seats(
    "gradient_regression",
    _values,
    reference="https://doi.org/10.1080/00401706.1970.10488634",
    summary="A client's update is a sum of its records' gradients: which of them explain it?",
    local_summary="The global model's step is a sum of gradients: which records explain it?",
    settings=Settings,
)

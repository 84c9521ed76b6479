"""Row space of the first dense layer: a client's update lies in the span of its own inputs.

The gradient of a dense layer z = W x + b is a sum of outer products (dL/dz) [x; 1]ᵀ, so whatever
number of local SGD steps, batches and epochs went by, the rows of the update [ΔW, Δb] lie in the
span of the client's inputs [x; 1]. A record that was trained on has no component outside that
span; any other record has one, as long as the client has fewer examples than the layer has inputs.

Rounding of float32 weights adds noise to the update, so singular values below the largest that
such noise can have are cut. Where no singular value falls below it (noise was added, or the
examples fill the space), the cut is the one that is best for unknown Gaussian noise.

References:
    Gavish, Donoho, "The optimal hard threshold for singular values is 4/sqrt(3)", IEEE Trans. Inf.
    Theory 2014, eq. (11) approximated. https://arxiv.org/abs/1305.5870
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.candidates import require_candidates
from attacks.federated.dense import first_dense_layer
from fl_audit.attack_spec import AttackInput, AttackSpec, MembershipScores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.threat_model import Observation
from fl_audit.trace import TraceView

_ROUNDING_STEPS = (
    1000  # float32 steps whose rounding errors, adding up as noise, stay below the cut
)


@dataclass(frozen=True, slots=True, eq=False)
class RowSpace:
    """The span of the inputs behind an update.

    Attributes:
        basis: Orthonormal columns, shape (inputs + 1, rank); the last row belongs to the bias.
        has_gap: Some singular values were at the level of rounding, so the rank is that of the
            client's data. False: the rank is an estimate under noise.
    """

    basis: NDArray[np.float64]
    has_gap: bool

    @property
    def slack(self) -> int:
        """Dimensions outside the span: 0 means that every record lies in it."""
        return int(self.basis.shape[0] - self.basis.shape[1])


def row_space(
    weight_update: NDArray[np.float64],
    bias_update: NDArray[np.float64] | None,
    weight: NDArray[Any],
) -> RowSpace:
    """Span of the inputs that a dense layer's update was made from.

    Args:
        weight_update: Client minus global weight, shape (out, in).
        bias_update: Client minus global bias, shape (out,), or None.
        weight: The global weight, shape (out, in); its size and dtype set the rounding level.

    Raises:
        InputError: If the update is zero.
    """
    out = len(weight_update)
    bias = np.zeros(out) if bias_update is None else bias_update
    matrix = np.column_stack([weight_update, bias])
    if not matrix.any():
        raise InputError(
            "update", "all zeros", "the layer was not trained", "Leave this update out."
        )
    _, singular, rows = np.linalg.svd(matrix, full_matrices=False)
    kept = singular > _rounding_level(weight) * (np.sqrt(out) + np.sqrt(matrix.shape[1]))
    has_gap = not kept[: _live(matrix)].all()
    if not has_gap:
        kept = singular > _noise_cut(singular, matrix.shape)
    return RowSpace(rows[kept].T, has_gap)


def residuals(space: RowSpace, inputs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of each input's norm that lies outside the span.

    Args:
        space: The span.
        inputs: Shape (n, in), flattened.

    Returns:
        Fractions in [0, 1], shape (n,); 0 = the record can have been trained on.
    """
    extended = np.column_stack([inputs, np.ones(len(inputs))]).astype(np.float64)
    outside = extended - (extended @ space.basis) @ space.basis.T
    result: NDArray[np.float64] = np.linalg.norm(outside, axis=1) / np.linalg.norm(extended, axis=1)
    return result


def row_space_scores(
    view: TraceView, candidates: Records
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Score candidates by how little of them lies outside any client update's row space.

    Returns:
        Scores in [-1, 0], shape (n,), higher = more likely a member: minus the smallest residual
        over clients and rounds, because one client in one round suffices. And notes on rank.

    Raises:
        ObservationError: If the view grants no client updates or global model.
        InputError: If the model does not start with a dense layer, no update is in view, or none
            has a row space that leaves anything out.
    """
    inputs = candidates.inputs.reshape(len(candidates), -1)
    best = np.full(len(inputs), np.inf)
    slacks: list[int] = []
    noisy = full = zero = 0
    for server_round in view.rounds:
        model = view.global_model(server_round)
        weight, bias = first_dense_layer(model, candidates.inputs.shape[1:])
        if not np.isfinite(model[weight]).all():
            continue
        for client in view.clients(server_round):
            update = view.client_update(server_round, client)
            if not update[weight].any():
                zero += 1
                continue
            space = row_space(update[weight], None if bias is None else update[bias], model[weight])
            noisy += not space.has_gap
            if space.slack == 0:
                full += 1
                continue
            slacks.append(space.slack)
            best = np.minimum(best, residuals(space, inputs))
    if not slacks:
        raise _nothing_to_score(view, full, zero)
    return -best, _notes(slacks, noisy, full, zero)


def _nothing_to_score(view: TraceView, full: int, zero: int) -> InputError:
    if any(view.clients(server_round) for server_round in view.rounds):
        return InputError(
            "client updates",
            f"{full} of full rank, {zero} zero",
            "no update leaves a dimension out, so there is no rank gap to score by",
            "The clients hold more examples than the layer has inputs, or did not train.",
        )
    if view.unusable:
        return InputError(
            "client updates",
            0,
            f"no client sent a usable one: {view.unusable[0]}",
            "Mend the clients, or record rounds in which some answer.",
        )
    return InputError(
        "client updates",
        0,
        "none is in view: the recording policy kept none",
        "Record with recording.record = 'all', or with the clients and rounds in question.",
    )


def _rounding_level(weight: NDArray[Any]) -> float:
    """Standard deviation that rounding of the weights can give each entry of an update."""
    epsilon = float(np.finfo(weight.dtype).eps) / 2
    size = float(np.sqrt(np.mean(np.square(weight, dtype=np.float64))))
    return float(epsilon * size * np.sqrt(_ROUNDING_STEPS))


def _live(matrix: NDArray[np.float64]) -> int:
    """Largest rank the update can have: inputs that are always zero (blank pixels) do not count."""
    return int(min(matrix.shape[0], matrix.any(axis=0).sum()))


def _noise_cut(singular: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    beta = min(shape) / max(shape)
    factor = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return float(factor * np.median(singular))


def _notes(slacks: list[int], noisy: int, full: int, zero: int) -> tuple[str, ...]:
    notes = [f"Rank slack (dimensions left out) from {min(slacks)} to {max(slacks)}."]
    if noisy:
        notes.append(f"{noisy} updates have no rank gap: their rank was estimated under noise.")
    if full:
        notes.append(f"{full} updates have full rank and say nothing.")
    if zero:
        notes.append(f"{zero} updates are zero and say nothing.")
    return tuple(notes)


def _run(given: AttackInput) -> MembershipScores:
    scores, notes = row_space_scores(given.view, require_candidates(given))
    return MembershipScores(scores, (*notes, *given.view.unusable))


ATTACK = AttackSpec(
    name="row_space",
    kind="membership",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    run=_run,
    reference="https://arxiv.org/abs/1305.5870",
    summary="The first dense layer's update spans exactly the client's own inputs",
)

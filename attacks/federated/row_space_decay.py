"""What weight decay adds to an update: a multiple of the weights that the client received.

SGD with weight decay w <- w - lr (g + wd w) is linear in w, so after T steps the update is
c w0 + (a combination of gradients), the same c for every parameter, biases included: torch decays
them too. c w0 has full rank and hides the row space. Plain SGD: c = (1 - lr wd)^T - 1. The
proximal term pulls towards w0 itself, so it only changes how gradients are weighted, and c where
there is decay as well. A mean of updates has the mean of the c.

c is known where the local training is, and else found by minimum rank: where ΔW - c W0 loses rank,
c is an eigenvalue of W0⁺ ΔW, once for each dimension that the data leave out, while all other
eigenvalues are scattered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attacks.federated.spans import largest_by_rounding
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining
from fl_audit.trace import TraceView

Values = NDArray[np.float64]
_REFITS = 2  # of c on the directions that fall out; the second hardly changes it


def decay_multiple(training: LocalTraining, *, server_round: int, steps: int) -> float:
    """c in update = c w0 + (a combination of gradients): at most 0 without momentum.

    It follows torch's SGD without gradients: v <- m v + wd w + mu (w - w0), w <- w - lr v, where
    m is the momentum and mu the proximal term.

    Args:
        training: How the client trains.
        server_round: From 1; the learning rate may depend on it.
        steps: Local steps of the round.

    References:
        torch.optim.SGD. https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """
    if training.weight_decay == 0:
        return 0.0
    rate = training.learning_rate_in(server_round)
    moved = velocity = 0.0  # in units of w0
    for _ in range(steps):
        pull = training.weight_decay * (1 + moved) + training.proximal_mu * moved
        velocity = training.momentum * velocity + pull
        moved -= rate * velocity
    return moved


def known_multiple(view: TraceView, server_round: int, clients: Sequence[int]) -> float:
    """c of a client's update, or of the mean of several, weighted by their examples.

    Raises:
        ObservationError: If the view grants no LOCAL_TRAINING or EXAMPLE_COUNTS.
        InputError: If the run did not record them, or a count is impossible.
    """
    total = weighted = 0.0
    for client in clients:
        training, count = view.local_training(client), view.num_examples(server_round, client)
        steps = training.steps(max(1, round(count)))
        weighted += count * decay_multiple(training, server_round=server_round, steps=steps)
        total += count
    return weighted / total if total else 0.0


def granted_multiple(view: TraceView, server_round: int, clients: Sequence[int]) -> float | None:
    """The same, or None where the adversary does not know it."""
    try:
        return known_multiple(view, server_round, clients)
    except InputError:
        return None


def fitted_multiple(update: Values, weights: Values, level: float) -> float | None:
    """c such that update - c weights has the lowest rank.

    Args:
        update: [ΔW, Δb], shape (out, in + 1).
        weights: [W0, b0], the same shape.
        level: Standard deviation that rounding can give each entry of the update.

    Returns:
        c, or None if no c makes more dimensions fall to the level of rounding than chance can.
    """
    if len(update) < update.shape[1]:  # the null space is on the short side
        update, weights = update.T, weights.T
    multiples = np.linalg.eigvals(np.linalg.pinv(weights) @ update).real.astype(np.float64)
    cut = largest_by_rounding(level, update.shape)
    # a free c makes one singular value of a square matrix vanish, whatever the matrix
    chance = 1 if update.shape[0] == update.shape[1] else 0
    for size in _cluster_sizes(update.shape[1]):
        multiple, lost = _refit(update, weights, _tightest(multiples, size), size, cut)
        if lost > chance:
            return multiple
    return None


def _cluster_sizes(num: int) -> list[int]:
    """How many eigenvalues may be alike: few suffice, and pairs are tried last."""
    sizes = [4 * 2**power for power in range(num.bit_length()) if 4 * 2**power <= num]
    return [*sizes, min(2, num), 1]


def _tightest(values: Values, size: int) -> float:
    """Middle of the `size` values that lie closest together."""
    ordered = np.sort(values)
    widths = ordered[size - 1 :] - ordered[: len(ordered) - size + 1]
    start = int(np.argmin(widths))
    return float(np.median(ordered[start : start + size]))


def _refit(
    update: Values, weights: Values, multiple: float, size: int, cut: float
) -> tuple[float, int]:
    """c by least squares on the directions that fall out, and how many fall below `cut`."""
    for _ in range(_REFITS):
        _, singular, rows = np.linalg.svd(update - multiple * weights, full_matrices=False)
        size = max(size, int((singular <= cut).sum()))
        out = rows[-size:].T
        ours, theirs = weights @ out, update @ out
        power = float(np.sum(np.square(ours)))
        if power == 0:
            break
        multiple = float(np.sum(ours * theirs)) / power
    singular = np.linalg.svd(update - multiple * weights, compute_uv=False)
    return multiple, int((singular <= cut).sum())

"""Levenberg-Marquardt: least squares on the gradient itself, which ends in exact recovery.

Near a solution the gradient is nearly linear in the inputs, so a step of Gauss-Newton multiplies
the number of right digits. The damping lambda keeps the step short while it is not. Small problems
form the Jacobian, column by column with forward mode; larger ones solve the normal equations by
conjugate gradients and need only products with the Jacobian, so memory stays that of one gradient.

References:
    Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", SIAM 1963.
    Nocedal, Wright, "Numerical Optimization", 2006, section 10.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Tensor = torch.Tensor
Residual = Callable[[Tensor], Tensor]
"""From unknowns (n,) to residuals (m,)."""

_CHUNK = 64  # columns of the Jacobian at a time
_CG_STEPS = 250
_CG_TOLERANCE = 1e-3  # of the right-hand side: an inexact step is enough far from the solution
_LONGEST_REFUSAL = 8  # steps in a row that made nothing better
_STANDSTILL = 1e-4  # relative gain below which another step is not worth it
_ROUNDING = 8  # a step this many times the precision of the unknowns is noise
_ELEMENTS = 150_000_000  # float64 elements of a Jacobian that is formed: 1.2 GB


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """Where refinement ended.

    Attributes:
        unknowns: Shape (n,).
        objective: Sum of squares before, and after each step that was taken.
        is_dense: Whether the Jacobian was formed.
        products: Products with the Jacobian or its transpose, each the price of about one
            evaluation of the objective's gradient.
    """

    unknowns: Tensor
    objective: NDArray[np.float64]
    is_dense: bool
    products: int


def refine(
    residual: Residual,
    unknowns: Tensor,
    *,
    steps: int,
    dense_limit: int,
    damping: float = 1e-3,
    tick: Callable[[int, int], None] | None = None,
) -> Refined:
    """Minimise the sum of squares of `residual` from `unknowns` on.

    Args:
        residual: Twice differentiable in forward and reverse mode.
        unknowns: Shape (n,).
        steps: At most.
        dense_limit: Unknowns up to which the Jacobian is formed, if it fits in memory.
        damping: First lambda, in units of the mean of the diagonal of J'J.
    """
    rest = residual(unknowns)
    is_dense = len(unknowns) <= dense_limit and len(unknowns) * len(rest) <= _ELEMENTS
    square = float(rest.square().sum())
    history, refused, products, step = [square], 0, 0, 0
    while step < steps and refused < _LONGEST_REFUSAL and np.isfinite(square) and square > 0:
        system = _Dense(residual, unknowns) if is_dense else _Free(residual, unknowns)
        refused = 0
        while refused < _LONGEST_REFUSAL:
            tried = unknowns + system.step(rest, damping)
            new_rest = residual(tried)
            new_square = float(new_rest.square().sum())
            if new_square < square:  # never true for NaN
                break
            damping, refused = damping * 8, refused + 1
        products += system.products
        if refused == _LONGEST_REFUSAL:
            break
        gain = 1 - new_square / square
        is_rounding = _is_rounding(tried - unknowns, tried)
        unknowns, rest, square = tried, new_rest, new_square
        damping = max(damping / 10, 1e-14)
        history.append(square)
        step += 1
        if tick is not None:
            tick(step, steps)
        if gain < _STANDSTILL or is_rounding:
            break
    return Refined(unknowns, np.array(history), is_dense, products)


def _is_rounding(step: Tensor, at: Tensor) -> bool:
    return float(step.norm()) <= _ROUNDING * torch.finfo(at.dtype).eps * float(at.norm())


class _Dense:
    """J formed, and J'J factored anew for each damping."""

    def __init__(self, residual: Residual, unknowns: Tensor) -> None:
        num = len(unknowns)
        self._jacobian_t = _columns(residual, unknowns)
        self._normal = self._jacobian_t @ self._jacobian_t.T
        self._scale = float(self._normal.diagonal().mean()) or 1.0
        self.products = num

    def step(self, rest: Tensor, damping: float) -> Tensor:
        """Solution s of (J'J + lambda I) s = -J'r."""
        damped = self._normal.clone()
        damped.diagonal().add_(damping * self._scale)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):  # lambda is below rounding: the next refusal raises it
            return torch.full_like(self._jacobian_t[:, 0], torch.nan)
        side = -(self._jacobian_t @ rest)
        solved: Tensor = torch.cholesky_solve(side[:, None], factor)[:, 0]
        return solved


class _Free:
    """Products with J and J' only."""

    def __init__(self, residual: Residual, unknowns: Tensor) -> None:
        self._residual, self._unknowns = residual, unknowns
        self.products = 0
        self._scale = 0.0

    def step(self, rest: Tensor, damping: float) -> Tensor:
        """Solution of (J'J + lambda I) s = -J'r by conjugate gradients."""
        pulled: Any = torch.func.vjp(self._residual, self._unknowns)
        pull = pulled[1]

        def normal(vector: Tensor) -> Tensor:
            along: Tensor = torch.func.jvp(self._residual, (self._unknowns,), (vector,))[1]
            self.products += 2
            back: Tensor = pull(along.detach())[0]
            return back.detach()

        side = -pull(rest)[0].detach()
        if self._scale == 0.0:  # mean of the diagonal, by one product with random signs
            signs = torch.sign(side) + (side == 0)
            self._scale = float((signs * normal(signs)).sum() / len(signs)) or 1.0
        return _conjugate_gradients(
            lambda v: normal(v) + damping * self._scale * v, side, steps=_CG_STEPS
        )


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], side: Tensor, *, steps: int
) -> Tensor:
    solved = torch.zeros_like(side)
    rest, direction = side.clone(), side.clone()
    power = rest.square().sum()
    goal = float(power) * _CG_TOLERANCE**2
    for _ in range(steps):
        if float(power) <= goal:
            break
        image = product(direction)
        curve = (direction * image).sum()
        if not float(curve) > 0:
            break
        length = power / curve
        solved = solved + length * direction
        rest = rest - length * image
        new_power = rest.square().sum()
        direction = rest + (new_power / power) * direction
        power = new_power
    return solved


def _columns(residual: Residual, unknowns: Tensor) -> Tensor:
    """J', shape (n, m): one row for each unknown, by forward mode, some at a time."""
    num = len(unknowns)

    def along(direction: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(residual, (unknowns,), (direction,))[1]
        return found

    parts = []
    for first in range(0, num, _CHUNK):
        rows = torch.arange(first, min(first + _CHUNK, num), device=unknowns.device)
        directions = torch.zeros(len(rows), num, dtype=unknowns.dtype, device=unknowns.device)
        directions[torch.arange(len(rows)), rows] = 1
        parts.append(torch.vmap(along)(directions).detach())
    return torch.cat(parts)

"""Levenberg-Marquardt: least squares on the gradient itself, which ends in exact recovery.

Near a solution the gradient is nearly linear in the inputs, so a step of Gauss-Newton multiplies
the number of right digits. The damping lambda keeps the step short while it is not. Small problems
form the Jacobian, column by column with forward mode; larger ones solve the normal equations by
conjugate gradients and need only products with the Jacobian, so memory stays that of one gradient.
Either way the number of products is limited: each costs about as much as a gradient.

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
Tick = Callable[[int, int], None]
"""Called with (products done, at most)."""

_CHUNK = 64  # columns of the Jacobian at a time
_CG_STEPS = 250
_CG_TOLERANCE = 1e-3  # of the right-hand side: an inexact step is enough far from the solution
_CG_FEWEST = 4  # products: two for the scale of the damping, two for one step
_LONGEST_REFUSAL = 8  # steps in a row that made nothing better
_STANDSTILL = 1e-4  # relative gain below which another step is not worth it
_ROUNDING = 8  # a step this many times the precision of the unknowns is noise
_ELEMENTS = 60_000_000  # float64 elements of a Jacobian that is formed: 0.5 GB


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """Where refinement ended.

    Attributes:
        unknowns: Shape (n,).
        objective: Sum of squares before, and after each step that was taken.
        is_dense: Whether the Jacobian was formed.
        products: Products with the Jacobian or its transpose, each the price of about one
            evaluation of the objective's gradient.
        is_cut_short: Whether it would have gone on, had there been more products.
    """

    unknowns: Tensor
    objective: NDArray[np.float64]
    is_dense: bool
    products: int
    is_cut_short: bool


def refine(
    residual: Residual,
    unknowns: Tensor,
    *,
    steps: int,
    dense_limit: int,
    most_products: int,
    damping: float = 1e-3,
    tick: Tick | None = None,
) -> Refined:
    """Minimise the sum of squares of `residual` from `unknowns` on.

    Args:
        residual: Twice differentiable in forward and reverse mode.
        unknowns: Shape (n,).
        steps: At most.
        dense_limit: Unknowns up to which the Jacobian is formed, if it fits in memory.
        most_products: With the Jacobian or its transpose. A step costs n where it is formed, and
            otherwise at most 502 for each damping that is tried.
        damping: First lambda, in units of the mean of the diagonal of J'J.
        tick: Called with (products done, at most).
    """
    at = _place(residual, unknowns)
    num = len(unknowns)
    is_dense = num <= dense_limit and num * len(at.rest) <= _ELEMENTS
    budget = _Budget(most_products, steps * (num if is_dense else 2 * (_CG_STEPS + 1)), tick)
    history = [at.square]
    while len(history) <= steps and np.isfinite(at.square) and at.square > 0:
        if not budget.allows(num if is_dense else _CG_FEWEST):
            break
        system = (_Dense if is_dense else _Free)(residual, at, budget)
        lower, damping = _lower(residual, system, at, damping)
        if lower is None:
            break
        gain = 1 - lower.square / at.square
        is_rounding = _is_rounding(lower.unknowns - at.unknowns, lower.unknowns)
        at, damping = lower, max(damping / 10, 1e-14)
        history.append(at.square)
        if gain < _STANDSTILL or is_rounding:
            break
    return Refined(at.unknowns, np.array(history), is_dense, budget.used, budget.is_short)


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Unknowns (n,), residuals (m,) there, and their sum of squares."""

    unknowns: Tensor
    rest: Tensor
    square: float


def _place(residual: Residual, unknowns: Tensor) -> _Place:
    rest = residual(unknowns)
    return _Place(unknowns, rest, float(rest.square().sum()))


class _Budget:
    """Products with the Jacobian: limited, counted and told."""

    def __init__(self, most: int, expected: int, tick: Tick | None) -> None:
        self.used, self.is_short = 0, False
        self._most, self._expected, self._tick = most, min(most, expected), tick

    def allows(self, products: int) -> bool:
        """Whether so many more may be taken; if not, the search was cut short."""
        is_allowed = self.used + products <= self._most
        self.is_short = self.is_short or not is_allowed
        return is_allowed

    def spend(self, products: int) -> None:
        """Count them."""
        self.used += products
        if self._tick is not None:
            self._tick(min(self.used, self._expected), self._expected)


def _lower(
    residual: Residual, system: _Dense | _Free, at: _Place, damping: float
) -> tuple[_Place | None, float]:
    """The next place, and the damping that led there; None if none of those tried did."""
    for _ in range(_LONGEST_REFUSAL):
        tried = _place(residual, at.unknowns + system.step(damping))
        if tried.square < at.square:  # never true for NaN
            return tried, damping
        damping *= 8
    return None, damping


def _is_rounding(step: Tensor, at: Tensor) -> bool:
    return float(step.norm()) <= _ROUNDING * torch.finfo(at.dtype).eps * float(at.norm())


class _Dense:
    """J formed, and J'J factored anew for each damping."""

    def __init__(self, residual: Residual, at: _Place, budget: _Budget) -> None:
        jacobian_t = _columns(residual, at, budget)
        self._normal = jacobian_t @ jacobian_t.T
        self._side = -(jacobian_t @ at.rest)
        self._scale = float(self._normal.diagonal().mean()) or 1.0

    def step(self, damping: float) -> Tensor:
        """Solution s of (J'J + lambda I) s = -J'r."""
        damped = self._normal.clone()
        damped.diagonal().add_(damping * self._scale)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):  # lambda is below rounding: the next refusal raises it
            return torch.full_like(self._side, torch.nan)
        solved: Tensor = torch.cholesky_solve(self._side[:, None], factor)[:, 0]
        return solved


class _Free:
    """Products with J and J' only."""

    def __init__(self, residual: Residual, at: _Place, budget: _Budget) -> None:
        self._residual, self._at, self._budget = residual, at, budget
        self._scale = 0.0

    def step(self, damping: float) -> Tensor:
        """Solution of (J'J + lambda I) s = -J'r by conjugate gradients."""
        pulled: Any = torch.func.vjp(self._residual, self._at.unknowns)
        pull = pulled[1]

        def normal(vector: Tensor) -> Tensor:
            along: Tensor = torch.func.jvp(self._residual, (self._at.unknowns,), (vector,))[1]
            back: Tensor = pull(along.detach())[0]
            self._budget.spend(2)
            return back.detach()

        side = -pull(self._at.rest)[0].detach()
        if self._scale == 0.0:  # mean of the diagonal, by one product with random signs
            signs = torch.sign(side) + (side == 0)
            self._scale = float((signs * normal(signs)).sum() / len(signs)) or 1.0
        return _conjugate_gradients(
            lambda v: normal(v) + damping * self._scale * v, side, self._budget
        )


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], side: Tensor, budget: _Budget
) -> Tensor:
    solved = torch.zeros_like(side)
    rest, direction = side.clone(), side.clone()
    power = rest.square().sum()
    goal = float(power) * _CG_TOLERANCE**2
    for _ in range(_CG_STEPS):
        if float(power) <= goal or not budget.allows(2):
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


def _columns(residual: Residual, at: _Place, budget: _Budget) -> Tensor:
    """J', shape (n, m): one row for each unknown, by forward mode, some at a time."""
    num = len(at.unknowns)

    def along(direction: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(residual, (at.unknowns,), (direction,))[1]
        return found

    jacobian_t = at.rest.new_empty(num, len(at.rest))
    for first in range(0, num, _CHUNK):
        rows = torch.arange(first, min(first + _CHUNK, num), device=at.unknowns.device)
        directions = torch.zeros(len(rows), num).to(at.unknowns)
        directions[torch.arange(len(rows)), rows] = 1
        jacobian_t[rows] = torch.vmap(along)(directions).detach()
        budget.spend(len(rows))
    return jacobian_t

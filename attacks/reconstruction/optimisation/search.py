"""Searches: Adam on all restarts at once, and L-BFGS with a line search on each."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.problem import Point, Problem
from attacks.reconstruction.optimisation.start import Scale

Tensor = torch.Tensor
Tick = Callable[[int, int], None]
"""Called with (evaluations done, at most)."""

_HISTORY = 100  # pairs that L-BFGS remembers
_PROGRESS = 0.01  # of the best objective: less in `patience` iterations is a standstill


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Where each restart's objective was lowest.

    Attributes:
        point: Inputs (restarts, b, ...) and logits.
        values: Objective there, shape (restarts,).
        objective: Objective of every evaluation, shape (evaluations, restarts); NaN where a
            restart had ended.
        frames: (evaluation, inputs) on the way.
        broke: Restarts that ended because the objective was not finite any more.
    """

    point: Point
    values: Tensor
    objective: NDArray[np.float64]
    frames: list[Tensor]
    broke: tuple[int, ...] = ()


class _Best:
    """Keeps the best point of each restart, and notices a standstill."""

    def __init__(self, point: Point, config: InversionConfig) -> None:
        self.parts = [part.detach().clone() for part in point.parts()]
        self.values = torch.full(
            (len(point.inputs),), math.inf, dtype=point.inputs.dtype, device=point.inputs.device
        )
        self.history: list[NDArray[np.float64]] = []
        self.frames: list[Tensor] = []
        self._every = -(-config.iterations // config.frames) if config.frames else 0
        self._config = config
        self._mark, self._since = self.values.clone(), 0

    def see(self, values: Tensor, parts: list[Tensor]) -> None:
        """Take in an evaluation."""
        better = values < self.values  # never true for NaN
        if bool(better.any()):
            self.values = torch.where(better, values, self.values)
            for mine, new in zip(self.parts, parts, strict=True):
                mine[better] = new[better]
        if self._every and len(self.history) % self._every == 0:
            self.frames.append(parts[0].detach().clone())
        self.history.append(values.double().cpu().numpy())

    def is_done(self) -> bool:
        """Whether all restarts are good enough, or stand still."""
        if float(self.values.max()) <= self._config.tolerance:
            return True
        if self._config.patience == 0:
            return False
        gained = self.values < (1 - _PROGRESS) * self._mark
        if bool(gained.any()):
            self._mark, self._since = torch.where(gained, self.values, self._mark), 0
            return False
        self._since += 1
        return self._since >= self._config.patience

    def found(self, broke: tuple[int, ...]) -> Found:
        """What was best."""
        logits = self.parts[1] if len(self.parts) > 1 else None
        history = np.array(self.history)
        return Found(Point(self.parts[0], logits), self.values, history, self.frames, broke)


def adam(problem: Problem, point: Point, scale: Scale, *, tick: Tick | None) -> Found:
    """Adam on all restarts; they are independent but for group consistency."""
    config = problem.config
    parts = [part.detach().clone() for part in point.parts()]
    optimiser = torch.optim.Adam(parts, lr=config.learning_rate)
    best = _Best(point, config)
    alive = torch.ones(len(point.inputs), dtype=torch.bool, device=point.inputs.device)
    with problem.quick(Point(*parts)):
        for step in range(config.iterations):
            values, slopes = problem.evaluate(Point(*parts))
            alive &= torch.isfinite(values)
            best.see(values.where(alive, torch.nan), parts)  # who has ended does not come back
            if not bool(alive.any()) or best.is_done():
                break
            if config.group_consistency:
                slopes[0] = slopes[0] + _towards_group(parts[0], alive, config)
            optimiser.param_groups[0]["lr"] = _learning_rate(config, step)
            for part, slope in zip(parts, slopes, strict=True):
                part.grad = _signed(slope, config, step) if part is parts[0] else slope.clone()
            optimiser.step()
            if config.box and problem.decode is None:  # bounds are the model's inputs'
                scale.clamp_(parts[0])
            if tick is not None:
                tick(step + 1, config.iterations)
    return best.found(tuple(torch.nonzero(~alive).flatten().tolist()))


def lbfgs(problem: Problem, point: Point, *, tick: Tick | None) -> Found:
    """L-BFGS with strong Wolfe line search, one restart after another.

    References:
        Nocedal, Wright, "Numerical Optimization", 2006, algorithms 3.5 and 7.5.
    """
    config, restarts = problem.config, len(point.inputs)
    found = []
    for restart in range(restarts):
        begin = Point(*(part[restart : restart + 1] for part in point.parts()))

        def told(done: int, _most: int, before: int = restart * config.iterations) -> None:
            if tick is not None:
                tick(before + done, restarts * config.iterations)

        found.append(_lbfgs_once(problem, begin, told))
    longest = max(len(f.objective) for f in found)
    history = np.full((longest, restarts), np.nan)
    for place, one in enumerate(found):
        history[: len(one.objective), place] = one.objective[:, 0]
    logits = None if point.logits is None else torch.cat([_logits(f) for f in found])
    best = int(torch.stack([f.values[0] for f in found]).argmin())
    return Found(
        Point(torch.cat([f.point.inputs for f in found]), logits),
        torch.cat([f.values for f in found]),
        history,
        found[best].frames,
        tuple(place for place, one in enumerate(found) if one.broke),
    )


class _OverError(Exception):
    """The evaluations are used up, or the objective is not finite."""


def _lbfgs_once(problem: Problem, point: Point, tick: Tick) -> Found:
    config, most = problem.config, problem.config.iterations
    parts = [part.detach().clone() for part in point.parts()]
    best = _Best(point, config)
    broke: list[int] = []
    optimiser = torch.optim.LBFGS(
        parts,
        max_iter=most,
        max_eval=most,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        if len(best.history) >= most:
            raise _OverError
        values, slopes = problem.evaluate(Point(*parts))
        best.see(values, parts)
        tick(len(best.history), most)
        if not bool(torch.isfinite(values).all()):
            broke.append(0)
            raise _OverError
        if best.is_done():
            raise _OverError
        for part, slope in zip(parts, slopes, strict=True):
            part.grad = slope
        return values[0]

    with suppress(_OverError):  # the best point so far is kept
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return best.found(tuple(broke))


def _logits(found: Found) -> Tensor:
    assert found.point.logits is not None  # labels are searched in all restarts or in none
    return found.point.logits


def _signed(slope: Tensor, config: InversionConfig, step: int) -> Tensor:
    if config.signed == "hard":
        return slope.sign()
    if config.signed == "soft":  # from nearly linear to nearly hard as the search goes on
        share = (step + 1) / config.iterations
        own = tuple(range(1, slope.ndim))  # of each restart: none depends on another
        size = slope.abs().mean(own, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        return torch.tanh(slope / (size * (1 - share * 0.9)))
    return slope.clone()


def _learning_rate(config: InversionConfig, step: int) -> float:
    rate, share = config.learning_rate, step / config.iterations
    if config.warmup and step < config.warmup:
        return rate * (step + 1) / config.warmup
    if config.schedule == "step":
        return rate * 0.1 ** sum(share >= mark for mark in (3 / 8, 5 / 8, 7 / 8))
    if config.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * share))
    return rate


def _towards_group(inputs: Tensor, alive: Tensor, config: InversionConfig) -> Tensor:
    """Slope of the mean squared distance to the mean of the restarts.

    References:
        Yin et al., "See through Gradients", CVPR 2021, eq. 11, without registration.
    """
    away = inputs - inputs[alive].mean(0, keepdim=True)
    return config.group_consistency * 2 * away / inputs[0].numel()

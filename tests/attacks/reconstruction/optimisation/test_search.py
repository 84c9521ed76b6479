"""Searches on a bowl whose lowest point is known, and on one that has a hole in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.problem import Point, Problem
from attacks.reconstruction.optimisation.search import Found, adam, lbfgs
from attacks.reconstruction.optimisation.start import Scale, find_scale
from tests.attacks.reconstruction.optimisation import nets

Tensor = torch.Tensor
GOAL = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
STEEP = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Bowl(Problem):
    """sum of steep * (x - goal)^2 for each restart; `spoil` may change its values."""

    points: list[Tensor] = field(default_factory=list)
    spoil: Callable[[Tensor, int], Tensor] | None = None

    def evaluate(self, point: Point) -> tuple[Tensor, list[Tensor]]:
        """Values with slopes of inputs, and of logits, which are pulled to 1."""
        self.points.append(point.inputs.clone())
        away = point.inputs - GOAL
        values, slopes = (STEEP * away.square()).sum((1, 2)), [2 * STEEP * away]
        if point.logits is not None:
            values = values + (point.logits - 1).square().sum((1, 2))
            slopes.append(2 * (point.logits - 1))
        if self.spoil is not None:
            values = self.spoil(values, len(self.points))
        return values, slopes


def bowl(spoil: Callable[[Tensor, int], Tensor] | None = None, **fields: Any) -> Bowl:
    config = InversionConfig.model_validate({"iterations": 400, "signed": "no", **fields})
    model = nets.drawn(torch.nn.Linear(3, 2))
    sights = nets.problem_of(model, nets.batch(1, 3), torch.tensor([0]), config).sights
    return Bowl(sights, None, config, spoil=spoil)


def starts(restarts: int) -> Tensor:
    return nets.batch(restarts, 1, 3)


def scale() -> Scale:
    return find_scale((3,), (0.0, 1.0), None, GOAL)


def with_adam(task: Bowl, restarts: int = 1, logits: Tensor | None = None) -> Found:
    with torch.no_grad():
        return adam(task, Point(starts(restarts), logits), scale(), tick=None)


def with_lbfgs(task: Bowl, restarts: int = 1, logits: Tensor | None = None) -> Found:
    return lbfgs(task, Point(starts(restarts), logits), tick=None)


@pytest.mark.parametrize("search", [with_adam, with_lbfgs])
def test_both_reach_the_lowest_point_from_every_start(search: Callable[..., Found]) -> None:
    logits = torch.zeros(3, 1, 2, dtype=torch.float64)
    found = search(bowl(labels="joint", schedule="cosine"), 3, logits)
    tight = search is with_lbfgs
    for restart in range(3):
        torch.testing.assert_close(
            found.point.inputs[restart, 0], GOAL, rtol=0, atol=1e-8 if tight else 1e-3
        )
    assert found.point.logits is not None
    torch.testing.assert_close(found.point.logits, torch.ones_like(logits), rtol=0, atol=2e-3)
    assert found.objective.shape[1] == 3
    np.testing.assert_array_equal(found.values, np.nanmin(found.objective, axis=0))
    assert found.broke == ()


def test_lbfgs_needs_few_evaluations_and_stays_within_its_share() -> None:
    assert len(with_lbfgs(bowl(tolerance=1e-16)).objective) < 40
    task = bowl(iterations=7)
    assert len(with_lbfgs(task, 2).objective) <= 7
    assert len(task.points) <= 14


@pytest.mark.parametrize("search", [with_adam, with_lbfgs])
def test_the_best_point_before_an_overflow_is_kept(search: Callable[..., Found]) -> None:
    """Restart 1 is NaN from its evaluation 6 on; whoever shares a batch with it goes on."""

    def spoil(values: Tensor, evaluation: int) -> Tensor:
        if len(values) == 1:
            return torch.full_like(values, torch.nan) if evaluation >= 6 else values
        return torch.where(torch.arange(3) == 1, torch.nan, values) if evaluation >= 6 else values

    restarts = 3 if search is with_adam else 1
    found = search(bowl(spoil, signed="soft"), restarts)
    place = 1 if search is with_adam else 0
    assert found.broke == (place,)
    assert bool(torch.isfinite(found.point.inputs).all())
    away = found.point.inputs[place] - GOAL
    assert float(found.values[place]) == pytest.approx(float((STEEP * away.square()).sum()))
    assert float(found.values[place]) == np.nanmin(found.objective[:, place])
    if search is with_adam:
        torch.testing.assert_close(found.point.inputs[2, 0], GOAL, rtol=0, atol=2e-3)


def test_a_restart_whose_slopes_are_not_numbers_does_not_spoil_the_others() -> None:
    class Holed(Bowl):
        def evaluate(self, point: Point) -> tuple[Tensor, list[Tensor]]:
            values, slopes = super().evaluate(point)
            values[0], slopes[0][0] = torch.nan, torch.nan
            return values, slopes

    for signed in ("no", "soft", "hard"):
        base = bowl(signed=signed, patience=60)
        task = Holed(base.sights, None, base.config)
        found = with_adam(task, 2)
        assert found.broke == (0,)
        assert torch.isinf(found.values[0])
        torch.testing.assert_close(found.point.inputs[1, 0], GOAL, rtol=0, atol=2e-2)


def test_a_restart_that_has_ended_does_not_come_back() -> None:
    def spoil(values: Tensor, evaluation: int) -> Tensor:
        return torch.where(torch.arange(2) == 1, torch.nan, values) if evaluation == 6 else values

    found = with_adam(bowl(spoil), 2)
    assert found.broke == (1,)
    assert np.isnan(found.objective[5:, 1]).all()
    assert float(found.values[1]) == found.objective[:5, 1].min()
    assert np.isfinite(found.objective[:, 0]).all()


def test_searches_stop_when_they_are_good_enough() -> None:
    for search in (with_adam, with_lbfgs):
        found = search(bowl(tolerance=0.5))
        assert len(found.objective) < 200
        assert float(found.values.max()) <= 0.5
        assert found.objective[:-1].min() > 0.5  # and not later


def test_searches_stop_when_all_restarts_stand_still() -> None:
    def stands(values: Tensor, evaluation: int) -> Tensor:
        """Restart 0 never gains; restart 1 gains until evaluation 50."""
        return torch.stack([torch.tensor(9.0), torch.tensor(0.9 ** min(evaluation, 50))]).double()

    found = with_adam(bowl(stands, patience=10), 2)
    assert len(found.objective) == 60
    assert len(with_adam(bowl(patience=0, iterations=80), 2).objective) == 80


def first_steps(**fields: Any) -> Tensor:
    """How far the first input moved in each step; hard signs make every step the learning rate."""
    task = bowl(iterations=80, signed="hard", learning_rate=0.001, box=False, **fields)
    with_adam(task)
    path = torch.stack(task.points)[:, 0, 0, 0]
    return path.diff().abs() / 0.001


def test_schedules_lower_the_learning_rate_as_they_say() -> None:
    torch.testing.assert_close(
        first_steps(schedule="constant"), torch.ones(79).double(), rtol=0, atol=1e-4
    )
    steps = first_steps(schedule="step")
    for step, share in ((29, 1.0), (31, 0.1), (49, 0.1), (51, 0.01), (71, 0.001)):
        assert float(steps[step]) == pytest.approx(share, rel=0.01)
    steps = first_steps(schedule="cosine", warmup=4)
    for step, share in ((0, 0.25), (1, 0.5), (3, 1.0), (20, 0.8536), (40, 0.5), (78, 0.00154)):
        assert float(steps[step]) == pytest.approx(share, rel=0.02)


def test_hard_signs_are_blind_to_steepness_and_soft_ones_less() -> None:
    """Adam divides by the size of past slopes: what differs is how coordinates compare later."""
    ends = {}
    for signed in ("no", "soft", "hard"):
        task = bowl(iterations=6, signed=signed, learning_rate=0.01, schedule="constant")
        with_adam(task)
        ends[signed] = (task.points[-1] - task.points[0])[0, 0].abs()
    torch.testing.assert_close(ends["hard"], torch.full((3,), 0.05).double(), rtol=1e-4, atol=0)
    assert not torch.allclose(ends["soft"], ends["hard"])
    assert not torch.allclose(ends["soft"], ends["no"])


def test_the_box_holds_after_every_step() -> None:
    task = bowl(signed="hard", learning_rate=0.95, iterations=20)
    with_adam(task)
    path = torch.stack(task.points)
    assert float(path.min()) == 0
    assert float(path.max()) == 1
    task = bowl(signed="hard", learning_rate=0.95, iterations=20, box=False)
    with_adam(task)
    assert float(torch.stack(task.points).min()) < 0


def test_bounds_are_the_inputs_and_not_what_is_decoded() -> None:
    task = bowl(signed="hard", learning_rate=0.95, iterations=20)
    searched = Bowl(task.sights, None, task.config, decode=torch.sigmoid)
    with_adam(searched)
    assert float(torch.stack(searched.points).min()) < 0


def test_group_consistency_pulls_restarts_together() -> None:
    """A flat bowl: only the group moves the restarts, to their mean."""

    class Flat(Bowl):
        def evaluate(self, point: Point) -> tuple[Tensor, list[Tensor]]:
            values, slopes = super().evaluate(point)
            return values * 0 + 1, [slope * 0 for slope in slopes]

    base = bowl(group_consistency=0.5, restarts=3, learning_rate=0.01, optimiser="adam")
    found = Flat(base.sights, None, base.config)
    with_adam(found, 3)
    before, after = found.points[0], found.points[-1]
    assert float(after.std(0).max()) < 0.05 * float(before.std(0).max())
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=0, atol=0.05)
    alone = with_adam(bowl(), 3).objective
    held = with_adam(bowl(group_consistency=5.0, restarts=3, optimiser="adam"), 3).objective
    assert not np.array_equal(alone, held)


@pytest.mark.parametrize("search", [with_adam, with_lbfgs])
def test_frames_are_as_many_as_asked_for_and_start_at_the_start(
    search: Callable[..., Found],
) -> None:
    for asked, iterations, expected in ((4, 40, 4), (3, 10, 3), (1, 10, 1), (50, 10, 10)):
        task = bowl(frames=asked, iterations=iterations, schedule="constant")
        found = search(task, 2)
        if search is with_adam:
            assert len(found.frames) == expected
        assert 1 <= len(found.frames) <= asked
        first = starts(2) if search is with_adam else found.frames[0]
        torch.testing.assert_close(found.frames[0], first)
        assert any(torch.equal(found.frames[0], starts(2)[r : r + 1]) for r in (0, 1)) or (
            search is with_adam
        )
    assert search(bowl(iterations=10)).frames == []


@pytest.mark.parametrize("search", [with_adam, with_lbfgs])
def test_searches_leave_the_start_alone_and_repeat_to_the_bit(
    search: Callable[..., Found],
) -> None:
    first, second = (search(bowl(iterations=30, signed="soft"), 2) for _ in range(2))
    assert torch.equal(first.point.inputs, second.point.inputs)
    np.testing.assert_array_equal(first.objective, second.objective)
    begin = starts(2)
    point = Point(begin)
    if search is with_adam:
        adam(bowl(iterations=3), point, scale(), tick=None)
    else:
        lbfgs(bowl(iterations=3), point, tick=None)
    assert torch.equal(begin, starts(2))


def test_ticks_count_up_to_the_most() -> None:
    told: list[tuple[int, int]] = []
    adam(bowl(iterations=5), Point(starts(2)), scale(), tick=lambda *t: told.append(t))
    assert told == [(step, 5) for step in (1, 2, 3, 4, 5)]
    told.clear()
    lbfgs(bowl(iterations=5), Point(starts(2)), tick=lambda *t: told.append(t))
    assert told[0] == (1, 10)
    assert all(most == 10 for _, most in told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)

"""Least squares: digits double at each step, no step is worse, and both paths agree."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.levenberg_marquardt import Refined, refine
from tests.attacks.reconstruction.optimisation import nets

Tensor = torch.Tensor
TRUTH = nets.batch(1, 12)


def gradient_residual() -> Callable[[Tensor], Tensor]:
    """How far the gradient of one input is from the observed one, for the dense net."""
    task = nets.problem_of(
        nets.dense(), TRUTH, torch.tensor([1]), InversionConfig(objective="euclidean")
    )
    simulation, objective = task.sights[0]
    labels = torch.tensor([1])
    return lambda x: objective.residual(simulation.pure(x.view(1, 12), labels))


def near() -> Tensor:
    noise = torch.randn(12, generator=nets.generator(8), dtype=torch.float64)
    return TRUTH.flatten() + 0.2 * noise


MANY = 10**6


def run(*, dense_limit: int = 100, steps: int = 12, most_products: int = MANY) -> Refined:
    return refine(
        gradient_residual(),
        near(),
        steps=steps,
        dense_limit=dense_limit,
        most_products=most_products,
    )


def test_the_number_of_right_digits_doubles_until_recovery_is_exact() -> None:
    found = run()
    assert found.is_dense
    torch.testing.assert_close(found.unknowns, TRUTH.flatten(), rtol=0, atol=1e-12)
    error = np.sqrt(found.objective)
    fast = [(a, b) for a, b in pairwise(error) if 1e-7 < a < 1e-2]
    assert fast
    assert all(b < 30 * a**1.5 for a, b in fast)
    assert len(error) <= 8  # and no steps in the noise of rounding after that


def test_without_the_jacobian_the_solution_is_the_same() -> None:
    free, dense = run(dense_limit=1), run()
    assert not free.is_dense
    torch.testing.assert_close(free.unknowns, dense.unknowns, rtol=0, atol=1e-10)
    assert dense.products % 12 == 0  # a column for each unknown, for each Jacobian
    assert free.products > 0


def rosenbrock(x: Tensor) -> Tensor:
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


@pytest.mark.parametrize("dense_limit", [1, 10])
def test_no_step_makes_the_objective_worse(dense_limit: int) -> None:
    """In Rosenbrock's bent valley full steps overshoot: they are refused, and damping rises."""
    begin = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    found = refine(rosenbrock, begin, steps=100, dense_limit=dense_limit, most_products=MANY)
    assert (np.diff(found.objective) < 0).all()
    torch.testing.assert_close(found.unknowns, torch.ones(2).double(), rtol=0, atol=1e-6)
    assert found.objective[0] == pytest.approx(24.2)


def test_steps_into_what_is_not_a_number_are_refused() -> None:
    """log(x) = -1 from 4: Newton's full step lands below 0."""
    found = refine(
        lambda x: torch.log(x) + 1,
        torch.tensor([4.0], dtype=torch.float64),
        steps=50,
        dense_limit=1,
        most_products=MANY,
    )
    assert float(found.unknowns) == pytest.approx(float(np.exp(-1)), rel=1e-9)
    assert np.isfinite(found.objective).all()


def test_it_ends_at_once_where_nothing_can_be_gained() -> None:
    at = TRUTH.flatten()
    exact = refine(gradient_residual(), at, steps=12, dense_limit=100, most_products=MANY)
    assert exact.objective[0] < 1e-28
    torch.testing.assert_close(exact.unknowns, at, rtol=0, atol=1e-13)
    nothing = refine(lambda x: x * 0 + 1, at, steps=12, dense_limit=100, most_products=MANY)
    assert len(nothing.objective) == 1
    broken = refine(lambda x: x / 0, at, steps=12, dense_limit=100, most_products=MANY)
    assert len(broken.objective) == 1


def test_noise_leaves_a_floor_and_steps_are_not_wasted_on_it() -> None:
    stream = nets.generator(3)
    matrix = torch.randn(40, 5, generator=stream, dtype=torch.float64)
    noise = torch.randn(40, generator=stream, dtype=torch.float64)
    solution = torch.linalg.lstsq(matrix, noise[:, None]).solution[:, 0]
    for dense_limit in (1, 10):
        found = refine(
            lambda x: matrix @ x - noise,
            torch.zeros(5, dtype=torch.float64),
            steps=50,
            dense_limit=dense_limit,
            most_products=MANY,
        )
        torch.testing.assert_close(found.unknowns, solution, rtol=0, atol=1e-4)
        floor = float((matrix @ solution - noise).square().sum())
        assert found.objective[-1] == pytest.approx(floor, rel=1e-6)
        assert len(found.objective) < 8


@pytest.mark.parametrize("dense_limit", [1, 100])
def test_products_are_counted_and_told(dense_limit: int) -> None:
    """On the way, not at the end of a step: a step can take minutes."""
    told: list[tuple[int, int]] = []
    found = refine(
        gradient_residual(),
        near(),
        steps=2,
        dense_limit=dense_limit,
        most_products=MANY,
        tick=lambda *t: told.append(t),
    )
    most = 2 * 12 if dense_limit == 100 else 2 * 502
    assert [t[1] for t in told] == [most] * len(told)
    done = [t[0] for t in told]
    assert done == list(range(12 if dense_limit == 100 else 2, done[-1] + 1, done[0]))
    assert done[-1] == found.products
    assert len(found.objective) == 3
    torch.testing.assert_close(near(), near())


def test_refinement_ends_with_its_products() -> None:
    """Twelve a step with the Jacobian formed; two for each step of conjugate gradients."""
    whole = run()
    assert not whole.is_cut_short
    assert whole.products > 36
    for most, steps in ((11, 0), (12, 1), (35, 2), (36, 3)):
        found = run(most_products=most)
        assert (found.is_cut_short, found.products) == (True, 12 * steps)
        assert found.objective.tolist() == whole.objective[: steps + 1].tolist()
    free = run(dense_limit=1)
    assert not free.is_cut_short
    assert not run(dense_limit=1, most_products=free.products).is_cut_short
    for most in (3, 4, 9, 40, free.products - 2):
        found = run(dense_limit=1, most_products=most)
        assert found.is_cut_short
        assert most - 4 < found.products <= most
        assert (np.diff(found.objective) < 0).all()
    assert len(run(dense_limit=1, most_products=3).objective) == 1


def test_more_equations_than_memory_take_the_other_path(monkeypatch: pytest.MonkeyPatch) -> None:
    home = "attacks.reconstruction.optimisation.levenberg_marquardt"
    monkeypatch.setattr(f"{home}._ELEMENTS", 100)
    assert not run().is_dense


def test_jacobians_larger_than_a_chunk_are_whole() -> None:
    """150 unknowns: three chunks, the last smaller."""
    matrix = torch.randn(160, 150, generator=nets.generator(), dtype=torch.float64)
    goal = torch.randn(150, generator=nets.generator(2), dtype=torch.float64)
    found = refine(
        lambda x: matrix @ (x - goal),
        torch.zeros_like(goal),
        steps=30,
        dense_limit=1000,
        most_products=MANY,
    )
    torch.testing.assert_close(found.unknowns, goal, rtol=0, atol=1e-8)

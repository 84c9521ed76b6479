"""What is minimised: derivatives by finite differences, and many restarts at once as one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.objectives import build_objective
from attacks.reconstruction.optimisation.plan import LocalPlan
from attacks.reconstruction.optimisation.problem import Point, Problem
from attacks.reconstruction.optimisation.regularisers import running_moments
from attacks.reconstruction.optimisation.simulation import LocalSteps, OneGradient
from fl_audit.local_training import LocalTraining
from tests.attacks.reconstruction.optimisation import nets

RESTARTS = 3
LABELS = torch.tensor([0, 1])
SHAPE = (2, 1, 6, 6)


def mixed(searched: torch.Tensor) -> torch.Tensor:
    """Something to decode with: not the identity, and not linear."""
    return 0.5 + 0.4 * searched.sin() * searched.mean()


def towards_half(searched: torch.Tensor) -> torch.Tensor:
    return 0.3 * (searched - 0.5).square().mean()


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "euclidean": ({"objective": "euclidean"}, {}),
    "cosine": ({}, {}),
    "sign": ({"objective": "sign"}, {}),
    "weights": ({"objective": "cosine", "layer_weights": "linear"}, {}),
    "penalties": ({"total_variation": 0.1, "norm": 0.2}, {}),
    "joint": ({"labels": "joint", "total_variation": 0.1}, {}),
    "decode": ({"norm": 0.2, "labels": "joint"}, {"decode": mixed}),
    "prior": ({"objective": "masked_cosine"}, {"prior": towards_half}),
}


def problem(fields: dict[str, Any], parts: dict[str, Any]) -> tuple[Problem, Point]:
    config = InversionConfig.model_validate({"restarts": RESTARTS, **fields})
    seen = nets.problem_of(nets.convolutional(), nets.batch(*SHAPE), LABELS, config)
    starts = nets.batch(RESTARTS, *SHAPE, seed=1)
    if config.labels != "joint":
        return replace(seen, **parts), Point(starts)
    logits = torch.randn(RESTARTS, 2, 2, generator=nets.generator(2), dtype=torch.float64)
    return replace(seen, labels=None, **parts), Point(starts, logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_restarts_at_once_are_restarts_one_by_one(variant: str) -> None:
    task, point = problem(*VARIANTS[variant])
    assert task.batches_restarts
    values, slopes = task.evaluate(point)
    assert task.evaluations == [RESTARTS]
    for restart in range(RESTARTS):
        alone = Point(*(part[restart : restart + 1] for part in point.parts()))
        value, slope = task.evaluate(alone)  # one restart never takes the batched path
        torch.testing.assert_close(values[restart], value[0], rtol=1e-10, atol=1e-14)
        for whole, own in zip(slopes, slope, strict=True):
            torch.testing.assert_close(whole[restart], own[0], rtol=1e-8, atol=1e-13)


def check_slopes(task: Problem, point: Point) -> None:
    """Against central differences along a random direction, for every part of the point."""
    value, slopes = task.evaluate(point)
    assert float(value) > 0
    stream = nets.generator(9)
    for place, slope in enumerate(slopes):
        along = torch.randn(slope.shape, generator=stream, dtype=torch.float64)
        sides = []
        for step in (1e-5, -1e-5):
            parts = list(point.parts())
            parts[place] = parts[place] + step * along
            sides.append(float(task.evaluate(Point(*parts))[0]))
        assert float((slope * along).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_slopes_are_those_of_finite_differences(variant: str) -> None:
    task, point = problem(*VARIANTS[variant])
    check_slopes(task, Point(*(part[:1] for part in point.parts())))


def test_slopes_through_batch_norm_statistics_and_the_prior() -> None:
    model = nets.normalised().train()
    model(nets.batch(6, 1, 4, 4, seed=4))
    wanted = running_moments(model)
    for layer in (model[1], model[5]):  # type: ignore[index]
        layer.track_running_stats = False
    config = InversionConfig(
        objective="cosine", batch_norm=0.2, statistics="running", total_variation=0.1
    )
    seen = nets.problem_of(model, nets.batch(3, 1, 4, 4), torch.tensor([0, 1, 1]), config)
    task = replace(seen, moments=wanted, prior=towards_half)
    point = Point(nets.batch(1, 3, 1, 4, 4, seed=1))
    check_slopes(task, point)
    without, _ = replace(task, moments=None).evaluate(point)
    assert float(task.evaluate(point)[0]) > float(without) + 0.01


def test_several_sights_are_averaged() -> None:
    """One client's data seen at two models, at the same scale or not."""
    inputs = nets.batch(2, 12)
    labels = torch.tensor([2, 0])
    models = [nets.dense(), nets.dense(5)]
    for objective in ("cosine", "euclidean"):
        config = InversionConfig.model_validate({"objective": objective})
        singles = [nets.problem_of(model, inputs, labels, config) for model in models]
        both = Problem([single.sights[0] for single in singles], labels, config)
        point = Point(nets.batch(1, 2, 12, seed=3))
        values = [float(single.evaluate(point)[0]) for single in singles]
        assert float(both.evaluate(point)[0]) == pytest.approx(sum(values) / 2, rel=1e-12)
        assert abs(values[0] - values[1]) > 1e-4
        check_slopes(both, point)
        assert float(both.evaluate(Point(inputs[None]))[0]) < 1e-25


def test_slopes_through_local_steps() -> None:
    model, inputs, labels = nets.dense(), nets.batch(4, 12), torch.tensor([0, 1, 2, 2])
    training = LocalTraining(local_epochs=2, batch_size=3, momentum=0.5)
    plan = LocalPlan(training, 0.5, 4)
    names = tuple(name for name, _ in model.named_parameters())
    simulation = LocalSteps(model, names, training, 0.5, plan.batches())
    twice = plan.spread(labels)
    seen = [g.detach() for g in simulation(inputs.repeat(2, 1), twice)]
    observed = dict(zip(names, seen, strict=True))
    config = InversionConfig(restarts=2)
    task = Problem(
        [(simulation, build_objective(config, observed, names))], twice, config, prior=plan.prior
    )
    assert not task.batches_restarts
    starts = nets.batch(2, 8, 12, seed=1)
    values, slopes = task.evaluate(Point(starts))
    value, slope = task.evaluate(Point(starts[1:]))
    torch.testing.assert_close((values[1], slopes[0][1]), (value[0], slope[0][0]))
    check_slopes(task, Point(starts[:1]))
    assert float(task.evaluate(Point(inputs.repeat(2, 1)[None]))[0]) < 1e-25


def test_evaluating_changes_neither_the_point_nor_the_model() -> None:
    task, point = problem(*VARIANTS["joint"])
    model = task.sights[0][0].model
    before = [part.clone() for part in point.parts()]
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    task.evaluate(point)
    task.evaluate(Point(*(part[:1] for part in point.parts())))
    assert all(torch.equal(a, b) for a, b in zip(point.parts(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_whose_gradient_is_zero_has_a_finite_objective() -> None:
    model, config = nets.dense(), InversionConfig()
    seen = nets.problem_of(model, nets.batch(1, 12), torch.tensor([0]), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[2].bias.copy_(torch.tensor([900.0, 0.0, 0.0]))  # type: ignore[index]
    assert isinstance(seen.sights[0][0], OneGradient)
    values, slopes = seen.evaluate(Point(nets.batch(1, 1, 12)))
    assert float(values) == pytest.approx(0.5)
    assert bool(torch.isfinite(slopes[0]).all())

"""How long a step of gradient inversion takes, as a ratio to a straightforward closure.

    python tests/benchmarks/inversion_speed.py

Baseline: the closure that most code uses. It zeroes the model's gradients, takes the gradient of
the loss by parameter, compares it tensor by tensor, and calls backward, which also accumulates
second-order gradients into every parameter. Same model, same observed gradient, same start, signed
Adam with total variation in both; steps of the two take turns, so that both meet the same machine.
One thread.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch

from attacks.reconstruction.optimisation.objectives import build_objective
from attacks.reconstruction.optimisation.presets import preset
from attacks.reconstruction.optimisation.problem import Point, Problem
from attacks.reconstruction.optimisation.search import adam
from attacks.reconstruction.optimisation.simulation import OneGradient
from attacks.reconstruction.optimisation.start import find_scale, start
from simulations.models import convnet, lenet_zhu, mlp, resnet8, resnet18

MODELS = {
    "MLP": mlp,
    "LeNetZhu": lenet_zhu,
    "convnet": convnet,
    "ResNet-8": resnet8,
    "ResNet-18": resnet18,
}
STEPS = {"MLP": 300, "LeNetZhu": 300, "convnet": 40, "ResNet-8": 20, "ResNet-18": 6}
RESTARTS = 8
REPEATS = 5
SHAPE = (3, 32, 32)
LABELS = torch.tensor([3])


def main() -> None:
    """Print both ratios for each model."""
    torch.set_num_threads(1)
    for name in MODELS:
        model, observed = _task(name)
        steps = STEPS[name]
        pairs = [
            (_baseline(model, observed, steps), _ours(model, observed, steps, 1))
            for _ in range(REPEATS)
        ]
        ratio = statistics.median(ours / base for base, ours in pairs)
        step = statistics.median(ours for _, ours in pairs) / steps
        print(f"{name}: step {1e3 * step:.2f} ms, {ratio:.2f} x the closure")
        few = max(2, steps // 10)
        one = statistics.median(_ours(model, observed, few, 1) for _ in range(REPEATS))
        many = statistics.median(_ours(model, observed, few, RESTARTS) for _ in range(REPEATS))
        base = statistics.median(_baseline(model, observed, few) for _ in range(REPEATS))
        print(
            f"{name}: {RESTARTS} restarts, {RESTARTS * one / many:.2f} x the throughput of one by "
            f"one, {RESTARTS * base / many:.2f} x that of the closure"
        )


def _task(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = MODELS[name](input_shape=SHAPE, num_classes=10).eval()
    names = tuple(n for n, _ in model.named_parameters())
    gradient = OneGradient(model, names)(torch.rand(1, *SHAPE), LABELS)
    return model, {n: g.detach() for n, g in zip(names, gradient, strict=True)}


def _ours(
    model: torch.nn.Module, observed: dict[str, torch.Tensor], steps: int, restarts: int
) -> float:
    config = preset("inverting_gradients", iterations=steps, restarts=restarts)
    names = tuple(observed)
    objective = build_objective(config, observed, names)
    problem = Problem([(OneGradient(model, names), objective)], LABELS, config)
    scale = find_scale(SHAPE, config.bounds, None, torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    point = Point(start("normal", (restarts, 1, *SHAPE), scale, generator))
    return _seconds(lambda: adam(problem, point, scale, tick=None))


def _baseline(model: torch.nn.Module, observed: dict[str, torch.Tensor], steps: int) -> float:
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    inputs = (0.5 + 0.25 * torch.randn(1, *SHAPE, generator=generator)).requires_grad_()
    wanted = list(observed.values())
    optimiser = torch.optim.Adam([inputs], lr=0.1)
    marks = [steps * 3 // 8, steps * 5 // 8, steps * 7 // 8]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, marks, gamma=0.1)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), LABELS)
        gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        dot, left, right = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for found, seen in zip(gradient, wanted, strict=True):
            dot = dot + (found * seen).sum()
            left = left + found.pow(2).sum()
            right = right + seen.pow(2).sum()
        distance = 1 - dot / left.sqrt() / right.sqrt()
        across = (inputs[..., 1:] - inputs[..., :-1]).abs().mean()
        down = (inputs[..., 1:, :] - inputs[..., :-1, :]).abs().mean()
        whole: torch.Tensor = distance + 1e-4 * (across + down)
        whole.backward()  # type: ignore[no-untyped-call]
        inputs.grad = inputs.grad.sign() if inputs.grad is not None else None
        return whole

    def run() -> None:
        best = float("inf")
        for _ in range(steps):
            loss = optimiser.step(closure)  # type: ignore[arg-type]
            schedule.step()
            with torch.no_grad():
                inputs.clamp_(0, 1)
                best = min(best, float(loss))

    return _seconds(run)


def _seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


if __name__ == "__main__":
    main()

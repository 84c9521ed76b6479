"""A function's identity follows what it does, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from attacks.shadows.identity import function_identity

RATE = 0.1


def step(x: float) -> float:
    return x * RATE


def make(rate: float, inner: Callable[[float], float] = step) -> Any:
    def train(model: Any, dataset: Any, *, seed: int) -> Any:
        return [inner(rate) for _ in range(seed)], np.zeros(3)

    return train


def test_the_same_function_has_the_same_identity_each_time() -> None:
    assert function_identity(make(0.5)) == function_identity(make(0.5)) is not None


def test_closures_defaults_constants_and_called_functions_count() -> None:
    def other(x: float) -> float:
        return x * RATE + 0

    found = {
        function_identity(make(0.5)),
        function_identity(make(0.6)),
        function_identity(make(0.5, other)),
        function_identity(make(0.5, functools.partial(pow, 2.0))),
        function_identity(make(0.5), np.arange(3)),
        function_identity(make(0.5), np.arange(4)),
    }
    assert len(found) == 6
    assert None not in found


def test_a_global_that_a_called_function_uses_counts() -> None:
    before = function_identity(make(0.5))
    globals()["RATE"] = 0.2
    try:
        assert function_identity(make(0.5)) != before
    finally:
        globals()["RATE"] = 0.1
    assert function_identity(make(0.5)) == before


def test_weights_of_a_module_count() -> None:
    module = nn.Linear(2, 2)
    before = function_identity(step, module)
    with torch.no_grad():
        module.weight[0, 0] += 1
    assert function_identity(step, module) != before


def test_what_cannot_be_told_gives_none() -> None:
    assert function_identity(lambda: open) is not None
    assert function_identity(functools.partial(step, (n for n in range(3)))) is None


def test_methods_count_with_their_class() -> None:
    class First:
        rate = 1

        def train(self) -> int:
            return 1

    class Second:
        rate = 2

        def train(self) -> int:
            return 1

    assert function_identity(First.train, First) != function_identity(Second.train, Second)

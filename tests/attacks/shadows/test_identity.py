"""A function's identity follows what it does, and nothing else."""

from __future__ import annotations

import functools
import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, **texts: str) -> None:
    """Modules with these texts, as if they had just been written and imported."""
    folder.mkdir(exist_ok=True)
    monkeypatch.syspath_prepend(str(folder))
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    importlib.invalidate_caches()


USES = {
    "attribute": "import helper_mod\ndef train(m, d, *, seed):\n    return helper_mod.go()\n",
    "inside": "def train(m, d, *, seed):\n    import helper_mod\n    return helper_mod.go()\n",
    "from": "def train(m, d, *, seed):\n    from helper_mod import go\n    return go()\n",
    "handed on": "import helper_mod\ndef train(m, d, *, seed):\n    return call(helper_mod)\n"
    "def call(x):\n    return x.go()\n",
}


@pytest.mark.parametrize("use", USES)
def test_an_edited_helper_module_counts(
    use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(helper: str, deep: str = "def rate(): return 1\n") -> str | None:
        texts = {"user_mod": USES[use], "helper_mod": helper, "deep_mod": deep}
        loaded(tmp_path, monkeypatch, **texts)
        return function_identity(importlib.import_module("user_mod").train)

    plain = "import deep_mod\ndef go(): return deep_mod.rate()\n"
    first = identity(plain)
    assert first is not None
    assert identity(plain) == first
    assert identity("import deep_mod\ndef go(): return deep_mod.rate() + 1\n") != first
    if use != "handed on":  # then only the helper's text is told
        assert identity(plain, "def rate(): return 2\n") != first


def test_a_value_set_in_a_helper_module_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(tmp_path, monkeypatch, helper_mod="RATE = 1\n")
    loaded(tmp_path, monkeypatch, user_mod="import helper_mod\ndef f(): return helper_mod.RATE\n")
    user = importlib.import_module("user_mod")
    before = function_identity(user.f)
    user.helper_mod.RATE = 2
    assert function_identity(user.f) != before


def test_an_edited_base_class_counts() -> None:
    def make(number: float) -> type:
        class Base:
            def rate(self) -> float:
                return number

        class Derived(Base):
            pass

        return Derived

    assert function_identity(step, make(1)) == function_identity(step, make(1)) is not None
    assert function_identity(step, make(1)) != function_identity(step, make(2))


def test_the_same_values_in_another_order_are_another_identity() -> None:
    a, b = [1], [2]
    assert function_identity(step, [a, b, a]) != function_identity(step, [a, b, b])


def test_an_array_of_objects_cannot_be_told() -> None:
    assert function_identity(step, np.array([object()])) is None

"""Asking a model: what it answers becomes logits, and what it cannot answer is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks.shadows.identity import module_digest
from attacks.shadows.target import Target, Task, ask, callable_target, module_target, residuals
from fl_audit.errors import InputError
from fl_audit.records import LazyInputs, Records

CLASSES = Task("classification", 3)


def records(num: int = 5, **fields: Any) -> Records:
    rng = np.random.default_rng(0)
    return Records(
        np.arange(10, 10 + num),
        fields.get("inputs", rng.normal(size=(num, 4)).astype(np.float32)),
        fields.get("labels", rng.integers(3, size=num)),
        fields.get("targets"),
    )


def test_a_module_answers_in_eval_mode_and_stays_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    target = module_target(module)
    assert np.array_equal(ask(target, records(), CLASSES), ask(target, records(), CLASSES))
    assert module.training
    assert all(p.requires_grad for p in module.parameters())


def test_the_key_follows_the_weights() -> None:
    module = nn.Linear(4, 3)
    before = module_target(module).key
    assert module_target(module).key == before
    with torch.no_grad():
        module.bias[0] += 1e-7 + module.bias[0].abs()
    assert module_target(module).key != before


class Scaled(nn.Module):
    """Answers depend on an attribute, an unsaved buffer and an object."""

    def __init__(self, temp: float = 1.0, offset: float = 0.0, how: Any = None) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        nn.init.ones_(self.inner.weight)
        nn.init.zeros_(self.inner.bias)
        self.temp, self.how = temp, how
        self.register_buffer("offset", torch.tensor(offset), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(inputs) / self.temp
        return found


def test_the_key_follows_attributes_buffers_hooks_and_code() -> None:
    class Edited(Scaled):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) * 2

    class Again(Scaled):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) * 3

    Again.__qualname__ = Edited.__qualname__
    hooked = Scaled()
    hooked.register_forward_hook(lambda module, given, found: found * 2)
    deep = Scaled()
    vars(deep.inner)["extra"] = 1
    modules = [
        Scaled(),
        Scaled(temp=2.0),
        Scaled(offset=1.0),
        Scaled(how=Task("regression", 2)),
        Scaled(how=Task("regression", 2, 0.5)),
        Edited(),
        Again(),
        hooked,
        deep,
        Scaled().to(torch.bfloat16),
    ]
    keys = [module_target(module).key for module in modules]
    assert None not in keys
    assert len(set(keys)) == len(modules)
    assert module_target(Scaled().train()).key == module_target(Scaled().eval()).key == keys[0]


def test_what_cannot_be_told_has_no_key() -> None:
    assert module_target(Scaled(how=nn.functional.relu)).key is not None
    for hidden in (
        np.random.default_rng(0),
        torch.finfo(torch.float32),
        torch.zeros(1).to_sparse(),
    ):
        assert module_digest(Scaled(how=hidden)) is None
    assert module_digest(nn.LazyLinear(3)) is None
    assert module_target(Scaled(how=np.random.default_rng(0))).key is None


def test_probabilities_become_logits() -> None:
    p = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    found = ask(callable_target(lambda x: p), records(2), CLASSES)
    assert np.allclose(np.exp(found[0]), p[0])
    assert found[1, 1] == np.log(1e-12)


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        ask(callable_target(lambda x: np.full((len(x), 3), 2.0)), records(), CLASSES)
    with pytest.raises(InputError, match="raised KeyError"):
        ask(callable_target(lambda x: {}["x"]), records(), CLASSES)


def test_nan_answers_name_the_record() -> None:
    def answer(inputs: Any) -> Any:
        found = np.zeros((len(inputs), 3))
        found[2] = np.nan
        return found

    with pytest.raises(InputError, match="logits of record 12"):
        ask(Target(answer), records(), CLASSES)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: np.zeros((len(x), 2)), r"need \(5, 3\)"),
        (lambda x: np.zeros((1, 3)), "one row for each of 5 inputs"),
    ],
)
def test_answers_of_the_wrong_shape(answer: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(Target(answer), records(), CLASSES)


def test_inputs_that_do_not_fit_the_model() -> None:
    with pytest.raises(InputError, match="the model refuses them"):
        ask(module_target(nn.Linear(7, 3)), records(), CLASSES)


def test_regression_is_attacked_through_its_likelihood() -> None:
    wanted = np.array([0.0, 1.0, -2.0], dtype=np.float32)
    given = records(3, labels=np.zeros(3, np.int64), targets=wanted)
    target = Target(lambda x: np.array([[1.0], [1.0], [-2.5]]))
    assert np.allclose(residuals(target, given), [1.0, 0.0, -0.5])
    found = ask(target, given, Task("regression", 2, scale=0.5))
    p = 1 / (1 + np.exp(-(found[:, 0] - found[:, 1])))
    assert np.allclose(p[[0, 2]], np.exp(-np.array([1.0, 0.25]) / (2 * 0.25)))
    assert p[1] > 1 - 1e-9  # exactly right: as sure as a float can be
    with pytest.raises(InputError, match="one number a record"):
        residuals(Target(lambda x: np.zeros((len(x), 2))), given)


def test_lazy_inputs_are_read_in_blocks_only() -> None:
    seen: list[int] = []

    def fetch(rows: Any) -> Any:
        seen.append(len(rows))
        return np.repeat(rows[:, None].astype(np.float32), 1 << 20, axis=1)

    lazy: Any = LazyInputs(fetch, np.arange(40), (1 << 20,))
    given = Records(np.arange(40), lazy, np.zeros(40, np.int64))
    found = ask(Target(lambda x: x[:, :3]), given, CLASSES)
    assert found[:, 0].tolist() == list(range(40))
    assert max(seen) == 1  # 4 MB each, 4 MB a query
    assert np.asarray(given.take([7, 3]).inputs)[:, 0].tolist() == [7, 3]

"""Ascent: against closed forms, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attacks.federated.active import (
    add_update,
    bounded_ascent,
    chunk,
    loss_drop,
    same_shapes,
)
from attacks.federated.rounds import record_losses
from fl_audit.errors import InputError
from fl_audit.factories import ModelSpec
from fl_audit.files import Arrays
from fl_audit.records import Records

SEED = 20_261_125
SPEC = ModelSpec(
    factory="simulations.models:mlp",
    settings={"input_shape": [6], "num_classes": 3, "hidden": [16]},
)
SETTINGS: dict[str, Any] = {"rate": 0.05, "steps": 40, "max_change": 5.0, "max_loss": 3.0}


def records(n: int, *, rng: np.random.Generator) -> Records:
    inputs = rng.normal(size=(n, 6)).astype(np.float32)
    return Records(np.arange(n), inputs, rng.integers(3, size=n))


def weights(*, rng: np.random.Generator) -> Arrays:
    state = SPEC.builder(trusted=False)().state_dict()
    return {k: rng.normal(0, 0.3, tuple(v.shape)).astype(np.float32) for k, v in state.items()}


def module() -> Any:
    return SPEC.builder(trusted=False)()


def distance(one: Arrays, other: Arrays) -> float:
    return float(np.sqrt(sum(np.sum((one[k].astype(float) - other[k]) ** 2) for k in one)))


def test_one_plain_step_is_rate_times_the_gradient_of_the_mean_loss() -> None:
    rng = np.random.default_rng(SEED)
    model, targets = weights(rng=rng), records(5, rng=rng)
    found = bounded_ascent(
        module(),
        model,
        targets,
        **{**SETTINGS, "rate": 0.1, "steps": 1, "max_loss": 99.0},
        stepping="plain",
        batch=2,
    )
    net = module()
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in model.items()})
    logits = net(torch.from_numpy(targets.inputs))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets.labels)).backward()
    for name, parameter in net.named_parameters():
        expected = parameter.detach().numpy() + 0.1 * parameter.grad.numpy()
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_targets_rise_and_held_records_do_not() -> None:
    rng = np.random.default_rng(SEED)
    model, targets, held = weights(rng=rng), records(4, rng=rng), records(30, rng=rng)
    before = [record_losses(module(), model, r) for r in (targets, held)]
    sent = bounded_ascent(module(), model, targets, held=held, **{**SETTINGS, "steps": 200})
    after = [record_losses(module(), sent, r) for r in (targets, held)]
    assert (after[0] > before[0]).all()
    assert after[1].mean() < before[1].mean()


def test_without_held_records_it_stops_once_every_target_is_bad_enough() -> None:
    rng = np.random.default_rng(SEED)
    model, targets = weights(rng=rng), records(4, rng=rng)
    settings = {**SETTINGS, "max_loss": 1e-3, "steps": 5}
    sent = bounded_ascent(module(), model, targets, **settings)
    assert all((sent[name] == model[name]).all() for name in model)


@pytest.mark.parametrize("stepping", ["adam", "plain"])
def test_the_change_stays_in_its_ball(stepping: Any) -> None:
    rng = np.random.default_rng(SEED)
    model, targets = weights(rng=rng), records(4, rng=rng)
    settings = {**SETTINGS, "rate": 50.0, "max_change": 0.2, "max_loss": 1e9}
    sent = bounded_ascent(module(), model, targets, stepping=stepping, **settings)
    radius = 0.2 * distance(model, {k: np.zeros_like(v) for k, v in model.items()})
    assert distance(sent, model) == pytest.approx(radius, rel=1e-4)


def test_same_input_same_bytes_and_the_input_is_not_modified() -> None:
    rng = np.random.default_rng(SEED)
    model, targets = weights(rng=rng), records(4, rng=rng)
    copy = {name: np.array(array) for name, array in model.items()}
    first, again = (bounded_ascent(module(), model, targets, **SETTINGS) for _ in range(2))
    assert all((first[k] == again[k]).all() and (model[k] == copy[k]).all() for k in model)


@pytest.mark.parametrize("name", ["rate", "steps", "max_change", "max_loss"])
def test_settings_must_be_positive(name: str) -> None:
    rng = np.random.default_rng(SEED)
    with pytest.raises(InputError, match=f"{name} = 0: must be above 0"):
        bounded_ascent(module(), weights(rng=rng), records(2, rng=rng), **{**SETTINGS, name: 0})


def test_targets_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(SEED)
    wide = Records(np.arange(2), np.zeros((2, 9), np.float32), np.zeros(2, np.int64))
    other = Records(np.arange(2), np.zeros((2, 6), np.float32), np.array([0, 7]))
    for targets, match in ((wide, "refuses inputs"), (other, "the model has 3 outputs")):
        with pytest.raises(InputError, match=match):
            bounded_ascent(module(), weights(rng=rng), targets, **SETTINGS)


def test_every_target_has_its_turn_once_a_cycle() -> None:
    turns = [chunk(10, 4, turn) for turn in range(3)]
    assert sorted(np.concatenate(turns)) == list(range(10))
    assert max(map(len, turns)) <= 4
    assert (chunk(10, 4, 3) == turns[0]).all()
    assert len(chunk(10, None, 5)) == len(chunk(10, 99, 5)) == 10
    assert len(chunk(0, 4, 0)) == 0


def test_add_update_moves_an_update_and_keeps_counters() -> None:
    base = {"w": np.array([10.0], np.float32), "n": np.array(1)}
    before = {"w": np.array([2.0], np.float32), "n": np.array(2)}
    after = {"w": np.array([2.5], np.float32), "n": np.array(3)}
    moved = add_update(base, before, after)
    assert moved["w"] == np.float32(10.5)
    assert moved["n"] == 3
    assert moved["w"].dtype == np.float32
    assert same_shapes(moved, base)
    assert not same_shapes(moved, {"w": base["w"]})


def test_loss_drop_is_positive_where_the_client_learned() -> None:
    assert (loss_drop(np.array([2.0, 2.0]), np.array([0.5, 2.0])) == [1.5, 0.0]).all()

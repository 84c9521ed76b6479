"""SPEAR: whole batches exactly, doubt where a gradient does not decide, and silence otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.reconstruction.metrics import EXACT
from attacks.reconstruction.spear import Batch, Budget, DenseGradient, recover_batch, spear
from attacks.reconstruction.spear_found import Found
from attacks.reconstruction.spear_layer import (
    Evidence,
    Layer,
    evidence,
    mask_of,
    numerical_rank,
    parallel_rows,
)
from attacks.reconstruction.spear_search import most_often_off, search
from fl_audit.errors import InputError
from simulations.data.builtin import tiles

SEED = 20_261_125
Values = NDArray[np.float64]


def gradients(
    inputs: Values,
    dtype: torch.dtype,
    seed: int,
    *,
    activation: type[nn.Module] = nn.ReLU,
    labels: NDArray[np.int64] | None = None,
) -> list[DenseGradient]:
    """Gradients of the SPEAR net's first two layers, mean cross-entropy, labels at random."""
    if labels is None:
        labels = np.random.default_rng(seed).integers(0, 10, len(inputs))
    torch.manual_seed(seed)
    width = inputs.shape[1]
    layers = [nn.Linear(width, 400), activation(), nn.Linear(400, 200), activation()]
    net = nn.Sequential(*layers, nn.Linear(200, 10)).to(dtype)
    logits = net(torch.from_numpy(inputs).to(dtype))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    loss.backward()  # type: ignore[no-untyped-call]
    found = []
    for dense in (net[0], net[2]):
        assert isinstance(dense, nn.Linear)
        assert dense.weight.grad is not None
        assert dense.bias.grad is not None
        layer = Layer(_array(dense.weight), _array(dense.bias))
        found.append(DenseGradient(dense.weight.grad.numpy(), dense.bias.grad.numpy(), layer))
    return found


def _array(parameter: torch.Tensor) -> Values:
    return np.asarray(parameter.detach().numpy(), dtype=np.float64)


def photographs(num: int, seed: int) -> Values:
    pictures = tiles().records.inputs
    rows = np.random.default_rng(seed).choice(len(pictures), num, replace=False)
    return pictures[rows].reshape(num, -1).astype(np.float64)


def invert(found: list[DenseGradient], **options: int) -> Batch:
    rng = np.random.default_rng(SEED)
    budget = Budget(max_tries=options.get("max_tries", 20_000))
    return recover_batch(found[0], rng=rng, following=found[1], budget=budget)


def nearest(batch: Batch, inputs: Values) -> Values:
    """Largest error of each reconstruction, against the nearest original."""
    errors: Values = np.abs(batch.inputs[:, None] - inputs[None]).max(axis=-1).min(axis=1)
    return errors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num", [1, 2, 4, 8])
def test_every_photograph_of_a_batch_comes_back(num: int, dtype: torch.dtype) -> None:
    for seed in range(2):
        inputs = photographs(num, seed)
        batch = invert(gradients(inputs, dtype, seed))
        assert batch.is_sure.all()
        assert len(batch.inputs) == batch.rank == num
        assert (nearest(batch, inputs) < EXACT).all()


def test_sampling_alone_finds_a_batch_and_repeats_itself() -> None:
    """Gaussian inputs, nothing subtracted first: the paper's part by itself."""
    inputs = np.random.default_rng(SEED).normal(size=(6, 600))
    first, _ = gradients(inputs, torch.float64, 0)
    weight, bias = first.weight.astype(np.float64), first.bias.astype(np.float64)
    seen = evidence(weight, bias, (first.layer,), precision=2.0**-53, batch_size=None)
    assert seen is not None
    results = []
    for _ in range(2):
        found = Found()
        rng = np.random.default_rng(SEED)
        tries = search(seen, found, rng=rng, max_tries=40_960, deadline=math.inf)
        assert 0 < tries < 40_960
        results.append(seen.inputs(found.solution(seen).directions))
    errors = np.abs(results[0][:, None] - inputs[None]).max(axis=-1).min(axis=0)
    assert (errors < EXACT).all()
    assert results[0].tobytes() == results[1].tobytes()


def test_sampling_takes_over_where_no_example_is_alone() -> None:
    inputs = np.random.default_rng(SEED).normal(size=(13, 600))
    first, _ = gradients(inputs, torch.float64, 0)
    batch = recover_batch(
        first, rng=np.random.default_rng(SEED), budget=Budget(max_batch=16, max_tries=0)
    )
    assert not len(batch.inputs)
    assert "0 of 13 examples were found" in batch.notes[0]
    late = Budget(max_batch=16, max_tries=200_000, max_seconds=0.0)
    assert recover_batch(first, rng=np.random.default_rng(SEED), budget=late).tries == 0
    batch = recover_batch(
        first, rng=np.random.default_rng(SEED), budget=Budget(max_batch=16, max_tries=200_000)
    )
    assert batch.is_sure.sum() == 13
    assert (nearest(batch, inputs) < EXACT).all()


def test_neurons_that_an_average_input_leaves_off_are_drawn_first() -> None:
    inputs = photographs(8, 0)
    first, _ = gradients(inputs, torch.float64, 0)
    weight, bias = first.weight.astype(np.float64), first.bias.astype(np.float64)
    seen = evidence(weight, bias, (first.layer,), precision=2.0**-53, batch_size=None)
    assert seen is not None
    num_on = (inputs @ seen.layers[0].weight.T + seen.layers[0].bias > 0).sum(axis=0)
    order = most_often_off(seen, Found())
    assert num_on[order[:100]].mean() < 3 < 6 < num_on[order[-100:]].mean()


def test_a_mask_needs_more_neurons_than_any_vector_vanishes_on() -> None:
    """Three examples, and an input that leaves two neurons off: some vector always vanishes."""
    rng = np.random.default_rng(SEED)
    for num_off, is_mask in ((2, False), (4, False), (5, True)):
        rows = 1e6 * rng.normal(size=(20, 3))
        rows[:num_off, 0] = 0.0  # the first vector vanishes there
        bias = np.where(np.arange(20) < num_off, -1.0, 1.0)
        layer = Layer(np.zeros((20, 4)), bias)
        basis, _ = np.linalg.qr(rng.normal(size=(5, 3)))
        seen = Evidence(rows, basis, np.ones(20), np.arange(20), (layer,), 1e-16)
        direction = np.array([1.0, 0.3, 0.2])
        assert (mask_of(seen, direction) is not None) == is_mask
        assert mask_of(seen, direction, agreeing=3) is not None


def test_signals_and_inputs_explain_the_gradient() -> None:
    inputs = photographs(4, 0)
    found = gradients(inputs, torch.float64, 0)
    batch = invert(found)
    np.testing.assert_allclose(batch.signals.T @ batch.inputs, found[0].weight, atol=1e-14)
    np.testing.assert_allclose(batch.signals.sum(axis=0), found[0].bias, atol=1e-14)
    on = batch.inputs @ found[0].layer.weight.T + found[0].layer.bias > 0
    assert ((np.abs(batch.signals) > 1e-12) == on).all()


def test_errors_are_foretold() -> None:
    """White noise on the gradient; the errors come from what the attacker knows alone."""
    inputs = photographs(4, 3)
    first, second = gradients(inputs, torch.float64, 3)
    rng = np.random.default_rng(SEED)
    std = 1e-6 * float(np.abs(first.weight).max())
    noisy = DenseGradient(
        first.weight + rng.normal(0, std, first.weight.shape),
        first.bias + rng.normal(0, std, first.bias.shape),
        first.layer,
    )
    batch = invert([noisy, second])
    assert batch.is_sure.all()
    rms = np.sqrt(((batch.inputs[:, None] - inputs) ** 2).mean(axis=-1)).min(axis=1)
    assert (rms < 3 * batch.errors).all()
    assert (batch.errors < 30 * rms).all()


def test_equal_examples_count_as_one() -> None:
    inputs = photographs(3, 1)
    first, second = gradients(inputs[[0, 1, 2, 2]], torch.float64, 1)
    batch = recover_batch(first, rng=np.random.default_rng(0), following=second, batch_size=4)
    assert batch.rank == 3
    assert "3 of 4 examples can be told apart" in batch.notes[0]
    assert (nearest(batch, inputs) < EXACT).all()


def test_examples_that_turn_on_the_same_neurons_everywhere_are_not_claimed() -> None:
    """Two shades of one picture act as one through every layer: mixtures fit as well."""
    inputs = photographs(5, 2)
    inputs[1] = inputs[0] * (1 + 1e-4)
    batch = invert(gradients(inputs, torch.float64, 2), max_tries=4096)
    assert (nearest(batch, inputs)[batch.is_sure] < EXACT).all()
    assert not (np.abs(batch.inputs[batch.is_sure] - inputs[0]).max(axis=1) < 1e-3).any()
    assert batch.notes


@pytest.mark.parametrize(
    ("num", "seed", "dtype", "is_alone", "least"),
    [
        (16, 1000, torch.float64, False, 9),
        (12, 1023, torch.float32, False, 0),  # float32 cannot rule mixtures out: none is sure
        (32, 2, torch.float64, True, 17),
    ],
)
def test_mixtures_of_alike_photographs_of_one_class_are_not_called_sure(
    num: int, seed: int, dtype: torch.dtype, is_alone: bool, least: int
) -> None:
    """Batches that hold two alike skies, each of which once gave a mixture of the two."""
    records = tiles().records
    rows = np.random.default_rng(seed).choice(len(records), num, replace=False)
    inputs = records.inputs[rows].reshape(num, -1).astype(np.float64)
    first, second = gradients(inputs, dtype, seed, labels=records.labels[rows])
    batch = recover_batch(
        first,
        rng=np.random.default_rng(seed % 1000),
        following=None if is_alone else second,
        budget=Budget(max_batch=num, max_tries=20_480),
    )
    assert batch.is_sure.sum() >= least
    assert (nearest(batch, inputs)[batch.is_sure] < 1e-5).all()


def test_the_next_layer_tells_apart_what_this_one_cannot() -> None:
    inputs = photographs(8, 5)  # every neuron that one of them turns on, another does too
    rng = np.random.default_rng(SEED)
    first, second = gradients(inputs, torch.float64, 5)
    on = inputs @ first.layer.weight.T + first.layer.bias > 0
    nested = [(a, b) for a in range(8) for b in range(8) if a != b and not (on[a] & ~on[b]).any()]
    assert nested
    alone = recover_batch(first, rng=rng, budget=Budget(max_tries=4096))
    both = recover_batch(first, rng=rng, following=second, budget=Budget(max_tries=4096))
    assert alone.is_sure.sum() < 8
    assert (nearest(alone, inputs)[alone.is_sure] < EXACT).all()
    assert both.is_sure.sum() == 8
    assert (nearest(both, inputs) < EXACT).all()


def test_nothing_is_claimed_of_smooth_nets_noise_and_full_rank() -> None:
    inputs = photographs(4, 0)
    smooth = invert(gradients(inputs, torch.float64, 0, activation=nn.Tanh), max_tries=4096)
    assert smooth.rank == 4
    assert not smooth.is_sure.any()
    first, _ = gradients(inputs, torch.float64, 0)
    rng = np.random.default_rng(SEED)
    noise = DenseGradient(rng.normal(size=(400, 3072)), rng.normal(size=400), first.layer)
    batch = recover_batch(noise, rng=rng)
    assert batch.rank is None
    assert "no low rank" in batch.notes[0]
    small = recover_batch(first, rng=rng, budget=Budget(max_batch=3))
    assert len(small.inputs) == 0
    assert "holds 4 examples" in small.notes[0]


def test_rank_is_that_of_the_signal_under_noise() -> None:
    rng = np.random.default_rng(SEED)
    signal = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 200))
    for std, rank in ((0.0, 5), (1e-3, 5), (0.1, 5), (1e3, 0)):
        noisy = signal + std * rng.normal(size=signal.shape)
        singular = np.asarray(np.linalg.svd(noisy, compute_uv=False), dtype=np.float64)
        assert numerical_rank(singular, 200, 1e-16) == rank


def test_parallel_rows_are_grouped_and_mixtures_are_not() -> None:
    rng = np.random.default_rng(SEED)
    first, second = rng.normal(size=(2, 6)) * 1e6
    rows = np.vstack([first, -2 * first, 0.5 * first, second, second + 1e-3 * first, np.zeros(6)])
    groups = parallel_rows(rows + rng.normal(size=rows.shape))
    assert [list(group) for group in groups] == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (np.ones((3, 2)), np.ones(2), "shapes"),
        (np.full((3, 2), np.nan), np.ones(3), "finite"),
        (np.ones((3, 2)), np.zeros(3), "no gradient"),
    ],
)
def test_bad_gradients_are_refused(weight: Values, bias: Values, message: str) -> None:
    layer = Layer(np.ones((3, 2)), np.ones(3))
    with pytest.raises(InputError, match=message):
        recover_batch(DenseGradient(weight, bias, layer), rng=np.random.default_rng(0))


@pytest.mark.parametrize("num", [1, 2, 4, 6])
def test_a_gradient_alone_gives_the_batch_back_but_nothing_is_sure(num: int) -> None:
    inputs = photographs(num, 3)
    first, _ = gradients(inputs, torch.float64, 3)
    batch = spear(first.weight, first.bias, num, rng=np.random.default_rng(SEED))
    assert len(batch.inputs) == num
    assert (nearest(batch, inputs) < EXACT).all()
    assert not batch.is_sure.any()
    whole = batch.signals.T @ np.column_stack([batch.inputs, np.ones(num)])
    np.testing.assert_allclose(whole[:, -1], first.bias, atol=1e-9)


def test_the_layer_makes_it_sure() -> None:
    inputs = photographs(4, 3)
    first, _ = gradients(inputs, torch.float64, 3)
    rng = np.random.default_rng(SEED)
    batch = spear(first.weight, first.bias, 4, rng=rng, layer=first.layer)
    assert batch.is_sure.all()
    assert (nearest(batch, inputs) < EXACT).all()


def two_class_gradient(num: int, seed: int) -> tuple[Values, DenseGradient]:
    """Gaussian records in a net of one hidden layer: all signals of a neuron have one ratio."""
    rng = np.random.default_rng(seed)
    inputs, labels = rng.normal(size=(num, 30)), rng.integers(0, 2, num)
    inputs[:, 1:] += 1.5 * rng.normal(size=(num, 1))  # alike, as records of one kind are
    torch.manual_seed(seed)
    first, last = nn.Linear(30, 64).double(), nn.Linear(64, 2).double()
    logits = last(torch.relu(first(torch.from_numpy(inputs))))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    weight, bias = torch.autograd.grad(loss, [first.weight, first.bias])
    layer = Layer(_array(first.weight), _array(first.bias))
    return inputs, DenseGradient(weight.numpy(), bias.numpy(), layer)


def test_parallel_neurons_of_two_classes_make_no_mixture_sure() -> None:
    num_sure = 0
    for seed in range(120):
        inputs, gradient = two_class_gradient(6 + seed % 3, seed)
        budget = Budget(max_tries=4096)
        batch = recover_batch(gradient, rng=np.random.default_rng(seed), budget=budget)
        assert (nearest(batch, inputs)[batch.is_sure] < EXACT).all()
        num_sure += int(batch.is_sure.sum())
    assert num_sure > 100


def test_tensors_serve_as_well_as_arrays() -> None:
    first, _ = gradients(photographs(2, 0), torch.float32, 0)
    weight, bias = torch.from_numpy(first.weight), torch.from_numpy(first.bias)
    rng = np.random.default_rng
    one = spear(first.weight, first.bias, rng=rng(SEED), layer=first.layer)
    other = spear(weight.requires_grad_(), bias, rng=rng(SEED), layer=first.layer)
    assert one.is_sure.all()
    assert one.inputs.tobytes() == other.inputs.tobytes()


@pytest.mark.parametrize("batch_size", [1.5, 0, -1, True])
def test_a_batch_size_is_a_positive_whole_number(batch_size: int) -> None:
    first, _ = gradients(photographs(2, 0), torch.float64, 0)
    with pytest.raises(InputError, match="batch_size"):
        spear(first.weight, first.bias, batch_size, rng=np.random.default_rng(SEED))


@pytest.mark.parametrize("is_known", [True, False])
def test_more_examples_than_the_batch_size_are_reported(is_known: bool) -> None:
    first, _ = gradients(photographs(4, 0), torch.float64, 0)
    layer = first.layer if is_known else None
    batch = spear(first.weight, first.bias, 2, rng=np.random.default_rng(SEED), layer=layer)
    assert batch.rank == 4
    assert not len(batch.inputs)
    assert batch.notes == ("The gradient's rank is 4: larger than the batch size, 2.",)


def test_an_input_agrees_with_the_mask_of_its_own_signal_only() -> None:
    rng = np.random.default_rng(SEED)
    layer = Layer(rng.normal(size=(40, 10)), np.zeros(40))
    inputs = rng.normal(size=(2, 10))
    signals = rng.normal(size=(2, 40)) * (inputs @ layer.weight.T > 0)
    weight, bias = signals.T @ inputs, signals.sum(axis=0)
    seen = evidence(weight, bias, (layer,), precision=1e-16, batch_size=2)
    assert seen is not None
    rows = seen.rows * seen.noise[:, None]
    masks = np.linalg.lstsq(rows, signals.T[seen.live], rcond=None)[0]
    assert seen.agrees(inputs[0], masks[:, 0])
    assert seen.agrees(inputs[1], masks[:, 1])
    assert not seen.agrees(inputs[0], masks[:, 1])
    (own,) = seen.layers
    fewer = replace(seen, layers=(Layer(own.weight, own.bias - 100),))
    assert not fewer.agrees(inputs[0], masks[:, 0])  # a signal where it is off
    more = replace(seen, layers=(Layer(own.weight, own.bias + 100),))
    assert not more.agrees(inputs[0], masks[:, 0])  # no signal where it is on

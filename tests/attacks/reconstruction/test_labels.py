"""Label counts of one gradient: exact where the softmax is known, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.reconstruction.label_shares import class_shares, likely_batch_size
from attacks.reconstruction.label_steps import LocalWork, stops
from attacks.reconstruction.labels import (
    estimate_labels,
    idlg_counts,
    label_counts,
    labels_of_batch,
)
from attacks.reconstruction.optimisation.simulation import pseudo_gradient
from attacks.reconstruction.resimulation import simulated_update
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining
from simulations.models import convnet, mlp

SEED = 20_261_123
CLASSES = 5
FALSE_FAILURE = 1e-6


def small_net(*, bias: bool = True, norm: bool = False) -> nn.Module:
    """An untrained net on 6 numbers. Large weights: its softmax differs from record to record."""
    torch.manual_seed(SEED)
    layers: list[nn.Module] = [nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, CLASSES, bias=bias)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(16))
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.eval()


def batch(size: int, seed: int = SEED) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return rng.random((size, 6), dtype=np.float32), rng.integers(CLASSES, size=size)


def gradients_of(
    model: nn.Module, inputs: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, torch.Tensor]:
    loss = nn.functional.cross_entropy(model(torch.from_numpy(inputs)), torch.from_numpy(labels))
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def true_counts(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(labels, minlength=CLASSES)


def test_shares_are_solved_exactly_when_the_softmax_is_known() -> None:
    """g = (Mᵀ - I) s by construction; the solver must give s back."""
    rng = np.random.default_rng(SEED)
    softmax = rng.dirichlet(np.ones(10), size=10)
    shares = rng.dirichlet(np.ones(10))
    gradient = (softmax.T - np.eye(10)) @ shares
    np.testing.assert_allclose(class_shares(gradient, softmax), shares, atol=1e-8)


@pytest.mark.parametrize("size", [1, 3, 40])  # 40 records are more than there are classes
@pytest.mark.parametrize("source", ["bias", "weight", "no bias"])
def test_shares_are_exact_with_the_batch_itself_as_proxies(size: int, source: str) -> None:
    """The softmax by class is then that of the batch, so that only float32 rounding is left."""
    model = small_net(bias=source != "no bias")
    inputs, labels = batch(size)
    gradients = gradients_of(model, inputs, labels)
    if source == "weight":
        del gradients["2.bias"]
    found = estimate_labels(model, gradients, size, proxy_inputs=inputs, proxy_labels=labels)
    np.testing.assert_allclose(found.shares, true_counts(labels) / size, atol=1e-5)
    assert found.counts.tolist() == true_counts(labels).tolist()


def test_batch_statistics_are_those_of_the_batch_in_training_mode_and_stay_as_they_are() -> None:
    model = small_net(norm=True).train()
    inputs, labels = batch(12)
    gradients = gradients_of(model, inputs, labels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = estimate_labels(model, gradients, 12, proxy_inputs=inputs, proxy_labels=labels)
    np.testing.assert_allclose(found.shares, true_counts(labels) / 12, atol=1e-5)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    in_eval = estimate_labels(model.eval(), gradients, 12, proxy_inputs=inputs, proxy_labels=labels)
    assert np.abs(in_eval.shares - found.shares).max() > 0.01


def test_order_kind_and_dropout_do_not_matter_and_nothing_global_is_drawn() -> None:
    inputs, labels = batch(20)
    model = nn.Sequential(nn.Dropout(0.5), small_net()).train()
    gradients = gradients_of(model.eval(), inputs, labels)
    arrays = {name: gradients[name].numpy() for name in reversed(gradients)}
    state = torch.get_rng_state()

    def counts(given: Any, mode: bool) -> list[int]:
        generator = torch.Generator().manual_seed(3)
        found = label_counts(model.train(mode), given, 20, input_shape=[6], generator=generator)
        return [int(count) for count in found]

    assert counts(gradients, False) == counts(arrays, False) == counts(arrays, True)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [4, 16, 64])
def test_disjoint_proxies_and_noise_do_for_an_untrained_convnet(size: int) -> None:
    """Labels say nothing about the pictures here; signs alone (iDLG) lose the larger batches."""
    torch.manual_seed(SEED)
    model = convnet(input_shape=[3, 16, 16], num_classes=10, width=8).eval()
    rng = np.random.default_rng(SEED)
    pictures = rng.random((size + 100, 3, 16, 16), dtype=np.float32)
    labels = rng.integers(10, size=size)
    gradients = gradients_of(model, pictures[:size], labels)
    true = np.bincount(labels, minlength=10)

    def overlap(counts: NDArray[np.int64]) -> float:
        assert counts.sum() == size
        return float(np.minimum(counts, true).sum() / size)

    assert overlap(label_counts(model, gradients, size, proxy_inputs=pictures[size:])) >= 0.95
    generator = torch.Generator().manual_seed(1)
    drawn = label_counts(model, gradients, size, input_shape=[3, 16, 16], generator=generator)
    assert overlap(drawn) >= 0.85
    if size == 64:
        assert overlap(idlg_counts(model, gradients, size)) < 0.85


def test_noise_in_place_of_a_gradient_says_nothing_about_the_labels() -> None:
    """Overlap with the batch's own labels, less that with the labels of the next batch.

    By Hoeffding (differences in [-1, 1]) the mean of n stays within `bound` of 0, but for a
    chance of FALSE_FAILURE, unless the counts depend on the batch; true gradients must exceed it.
    """
    model, num, size = small_net(), 200, 10
    proxies, _ = batch(100, seed=1)
    bound = math.sqrt(2 * math.log(2 / FALSE_FAILURE) / num)
    rng = np.random.default_rng(SEED)
    batches = [batch(size, seed=100 + i) for i in range(num)]
    shares = {"noise": 0.0, "true": 0.0}
    for place, (inputs, labels) in enumerate(batches):
        own, other = true_counts(labels), true_counts(batches[(place + 1) % num][1])
        true = gradients_of(model, inputs, labels)
        fake = {name: rng.normal(0, float(g.std()), g.shape) for name, g in true.items()}
        for kind, gradients in (("noise", fake), ("true", true)):
            counts = label_counts(model, gradients, size, proxy_inputs=proxies)
            gain = np.minimum(counts, own).sum() - np.minimum(counts, other).sum()
            shares[kind] += float(gain) / size / num
    assert abs(shares["noise"]) < bound < 0.4
    assert shares["true"] > bound / 2  # what is to be had: 1 less the overlap of two batches
    assert shares["true"] > 5 * abs(shares["noise"])


def test_a_batch_size_that_is_not_known_is_told_and_said() -> None:
    model = small_net()
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(1e-4)
    proxies, _ = batch(50, seed=1)
    inputs, _ = batch(7)
    labels = np.array([0, 0, 0, 2, 2, 4, 1])
    gradients = gradients_of(model, inputs, labels)
    found = estimate_labels(model, gradients, None, proxy_inputs=proxies)
    assert found.batch_size == 7
    assert found.counts.tolist() == [3, 1, 2, 0, 1]
    assert any("not known: 7 is the smallest" in note for note in found.notes)
    doubled = gradients_of(model, np.tile(inputs, (2, 1)), np.tile(labels, 2))
    assert estimate_labels(model, doubled, None, proxy_inputs=proxies).batch_size == 7
    with pytest.raises(InputError, match="softmax varies too much"):
        estimate_labels(
            small_net(), gradients_of(small_net(), inputs, labels), None, proxy_inputs=proxies
        )


def test_shares_that_are_no_counts_fit_no_batch_size() -> None:
    """Each draw fits by chance with probability 0.01 at most; 16 of 200 with 1e-9."""
    rng = np.random.default_rng(SEED)
    fits = 0
    for _ in range(200):
        try:
            likely_batch_size(rng.dirichlet(np.ones(4)), np.full(4, 1e-4), 100)
        except InputError:
            continue
        fits += 1
    assert fits < 16


def test_idlg_tells_one_label_and_which_classes_are_there() -> None:
    torch.manual_seed(SEED)
    model = mlp(input_shape=[6], num_classes=CLASSES, hidden=[32]).eval()  # ReLU: no negative
    inputs, labels = batch(20)
    for row in range(20):
        gradients = gradients_of(model, inputs[row : row + 1], labels[row : row + 1])
        counts = idlg_counts(model, gradients, 1)
        assert counts.tolist() == true_counts(labels[row : row + 1]).tolist()
    gradients = gradients_of(model, inputs[:4], np.array([1, 1, 1, 3]))
    assert idlg_counts(model, gradients, 4).tolist() == [0, 2, 0, 2, 0]


def test_labels_of_a_batch_are_as_many_as_the_counts_say() -> None:
    assert labels_of_batch(np.array([2, 0, 1])).tolist() == [0, 0, 2]


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_places_on_the_way_are_where_gradients_are_taken(momentum: float) -> None:
    """Played by hand: constant gradients of 1 with heavy-ball momentum move a weight to 1."""
    steps, velocity, place = 7, 0.0, 0.0
    places = []
    for _ in range(steps):
        places.append(place)
        velocity = momentum * velocity + 1
        place += velocity
    found = stops(steps, momentum, 100)
    np.testing.assert_allclose([s.position for s in found], np.array(places) / place)
    reach = [sum(momentum**j for j in range(steps - t)) / place for t in range(steps)]
    np.testing.assert_allclose([s.weight for s in found], reach)
    few = stops(steps, momentum, 3)
    assert len(few) == 3
    middle = sum(s.weight * s.position for s in found)
    np.testing.assert_allclose(sum(s.weight * s.position for s in few), middle)
    np.testing.assert_allclose(sum(s.weight for s in few), 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "changes", [{}, {"momentum": 0.6}, {"weight_decay": 0.3}, {"proximal_mu": 2.0}]
)
def test_several_steps_are_corrected_for(changes: dict[str, float], bias: bool) -> None:
    """The proxies are the client's records, so what is left is what the correction leaves.

    The straight way leaves an error of second order in the learning rate; the simulation that of
    another order of the records.
    """
    rate = 0.01
    model = small_net(bias=bias)
    inputs, labels = batch(40)
    training = LocalTraining(learning_rate=rate, local_epochs=5, batch_size=10, **changes)
    update = simulated_update(
        model,
        torch.from_numpy(inputs),
        torch.from_numpy(labels),
        training,
        rate,
        rng=np.random.default_rng(SEED),
    )
    gradients = pseudo_gradient(update, rate, training.steps(40), training.momentum)
    error = {}
    for way in ("path", "simulated", "none"):
        found = estimate_labels(
            model,
            gradients,
            40,
            proxy_inputs=inputs,
            proxy_labels=labels,
            generator=torch.Generator().manual_seed(SEED),
            work=LocalWork(training, rate, 40, correction=way),
        )
        error[way] = float(np.abs(found.shares - true_counts(labels) / 40).sum())
    assert error["path"] < 0.025
    assert error["path"] < error["none"] / 2
    assert error["simulated"] < error["none"] / 2


BATCH = batch(4)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"2.bias": np.ones(CLASSES + 1)}, {}, r"gradients\['2.bias'\].*has shape \(5,\)"),
        ({"0.bias": np.ones(3), "2.bias": np.ones(3)}, {}, r"gradients\['0.bias'\]"),
        ({"head.bias": np.ones(3)}, {}, r"'head.bias'.*no such parameter"),
        ({"2.bias": np.full(CLASSES, np.nan)}, {}, r"'2.bias'.*finite"),
        ({"2.bias": np.zeros(CLASSES)}, {}, "all zeros"),
        ({}, {"batch_size": 0}, "at least 1"),
        ({}, {"proxy_inputs": np.zeros((2, 7), dtype=np.float32)}, "refuses inputs of this shape"),
        ({}, {"proxy_inputs": np.zeros((0, 6), dtype=np.float32)}, "are none"),
        ({}, {"proxy_labels": np.array([0, 1, 2, CLASSES])}, "one class below 5"),
        ({}, {"proxy_labels": np.array([0, 1])}, "for each of 4 proxies"),
        ({}, {"proxy_inputs": None}, "one of them is needed"),
        ({}, {"proxy_inputs": None, "input_shape": [6]}, "generator"),
        ({}, {"proxy_inputs": None, "input_shape": [0]}, "no values"),
    ],
)
def test_bad_input(
    changes: dict[str, NDArray[np.float64]], arguments: dict[str, Any], message: str
) -> None:
    model = small_net()
    gradients = {**gradients_of(model, *BATCH), **changes}
    if arguments.get("input_shape") == [0]:
        arguments = {**arguments, "generator": torch.Generator()}
    with pytest.raises(InputError, match=message):
        label_counts(model, gradients, **{"batch_size": 4, "proxy_inputs": BATCH[0], **arguments})


def test_gradients_without_the_last_layer_are_refused() -> None:
    model = small_net()
    gradients = {n: g for n, g in gradients_of(model, *BATCH).items() if n.startswith("0")}
    with pytest.raises(InputError, match=r"'2.weight'.*is not there"):
        label_counts(model, gradients, 4, proxy_inputs=BATCH[0])


@pytest.mark.parametrize("last", [nn.LayerNorm(CLASSES), nn.Linear(CLASSES, 1), nn.Identity()])
def test_models_that_do_not_end_in_a_classifier_are_refused(last: nn.Module) -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 1) if isinstance(last, nn.Identity) else nn.ReLU(), last)
    with pytest.raises(InputError, match="is not that of a dense layer"):
        label_counts(model, {}, 1, proxy_inputs=BATCH[0])


def test_a_gradient_that_no_cross_entropy_gives_is_said_to_be_none() -> None:
    """As with a learning rate that is assumed too small."""
    model = small_net()
    gradients = {name: 30 * g for name, g in gradients_of(model, *BATCH).items()}
    found = estimate_labels(model, gradients, 4, proxy_inputs=BATCH[0])
    assert any("beyond what a mean cross-entropy can give" in note for note in found.notes)
    fine = estimate_labels(model, gradients_of(model, *BATCH), 4, proxy_inputs=BATCH[0])
    assert not any("beyond" in note for note in fine.notes)

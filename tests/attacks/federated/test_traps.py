"""ReLU traps: exact in one step, 50 targets present and 50 absent, among 1,000 records."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks.federated.traps import (
    build_traps,
    explained,
    fires,
    movement,
    plant_traps,
    planted_neurons,
)
from fl_audit.errors import InputError
from fl_audit.factories import ModelSpec
from fl_audit.files import Arrays
from simulations.data import load_dataset
from simulations.scenario import Data

SEED = 20_261_125
SPEC = ModelSpec(
    factory="simulations.models:mlp",
    settings={"input_shape": [1, 8, 8], "num_classes": 10, "hidden": [128]},
)
NUM_HELD, NUM_EACH = 1000, 50


def network() -> tuple[torch.nn.Module, Arrays]:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        module = SPEC.builder(trusted=False)()
    return module, {k: v.detach().numpy().copy() for k, v in module.state_dict().items()}


def one_step(
    module: torch.nn.Module, arrays: Arrays, inputs: np.ndarray, labels: np.ndarray, decay: float
) -> Arrays:
    """One step of SGD on all records together."""
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in arrays.items()})
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=decay)
    loss = torch.nn.functional.cross_entropy(
        module(torch.from_numpy(inputs)), torch.from_numpy(labels)
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {k: v.detach().numpy().copy() for k, v in module.state_dict().items()}


def test_exact_membership_of_50_present_and_50_absent_among_1000_records() -> None:
    """One target a model, one step a model, as the server does it if it asks about one record."""
    data = load_dataset(Data()).records
    order = np.random.default_rng(SEED).permutation(len(data))
    held, absent = order[:NUM_HELD], order[NUM_HELD : NUM_HELD + NUM_EACH]
    auxiliary = order[NUM_HELD + NUM_EACH : NUM_HELD + NUM_EACH + 300]
    flat = data.inputs.reshape(len(data), -1).astype(np.float64)
    module, model = network()
    neurons = np.arange(20, 24)
    found = []
    for target in np.concatenate([held[:NUM_EACH], absent]):
        traps = build_traps(flat[[target]], flat[auxiliary], neurons=4)
        sent = plant_traps(model, traps, neurons)
        assert fires(sent, flat[[target]], neurons).all()
        back = one_step(module, sent, data.inputs[held], data.labels[held], decay=0.0)
        is_there = (movement(sent, back, neurons) > 0).all()
        found.append(is_there and explained(sent, back, neurons, flat[target]) > 0.995)
    assert (np.array(found) == (np.arange(2 * NUM_EACH) < NUM_EACH)).all()


def test_weight_decay_alone_is_no_movement() -> None:
    rng = np.random.default_rng(SEED)
    module, model = network()
    inputs, labels = rng.random((30, 1, 8, 8), dtype=np.float32), rng.integers(10, size=30)
    target = 5 * np.ones((1, 64))
    sent = plant_traps(model, build_traps(target, inputs.reshape(30, -1)), np.array([7]))
    back = one_step(module, sent, inputs, labels, decay=5e-3)
    assert (back["1.weight"][7] != sent["1.weight"][7]).all()
    assert movement(sent, back, np.array([7])) == 0


def test_a_trap_fires_for_its_target_only() -> None:
    data = load_dataset(Data()).records
    flat = data.inputs.reshape(len(data), -1).astype(np.float64)
    traps = build_traps(flat[:40], flat[40:140])
    _, model = network()
    neurons = np.arange(40)
    sent = plant_traps(model, traps, neurons)
    fired = fires(sent, flat[:40], neurons)
    assert fired.diagonal().all()
    others = fires(sent, flat[140:1240], neurons)
    assert others.mean() < 1e-3
    assert traps.false_fire.shape == (40,)
    assert (traps.false_fire == (flat[40:140] @ traps.weights.T + traps.biases > 0).mean(0)).all()
    assert (planted_neurons(sent, model) == neurons).all()


def test_rows_are_of_the_layers_size_and_gradient_can_flow() -> None:
    rng = np.random.default_rng(SEED)
    _, model = network()
    model = {**model, "3.weight": np.array(model["3.weight"])}
    model["3.weight"][:, 5] = 0
    sent = plant_traps(
        model, build_traps(rng.random((2, 64)), rng.random((20, 64))), np.array([5, 9])
    )
    norms = np.linalg.norm(model["1.weight"], axis=1)
    assert np.linalg.norm(sent["1.weight"][5]) == pytest.approx(0.2 * np.median(norms), rel=1e-5)
    assert sent["3.weight"][:, 5].all()
    assert (sent["3.weight"][:, 9] == model["3.weight"][:, 9]).all()
    assert (np.delete(sent["1.weight"], [5, 9], 0) == np.delete(model["1.weight"], [5, 9], 0)).all()


def test_what_cannot_be_built_is_refused() -> None:
    rng = np.random.default_rng(SEED)
    data = rng.random((20, 4))
    with pytest.raises(InputError, match="at least 2 records"):
        build_traps(data[:1], data[:1])
    with pytest.raises(InputError, match="equals the mean"):
        build_traps(data.mean(axis=0, keepdims=True), data)
    with pytest.raises(InputError, match="margin = 1"):
        build_traps(data[:1], data, margin=1)
    with pytest.raises(InputError, match="one neuron a trap"):
        plant_traps(network()[1], build_traps(data[:1], data), np.array([0]))
    with pytest.raises(InputError, match="no bias"):
        planted_neurons({"w.weight": data}, {"w.weight": data})

"""Cosine: against a closed form, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attacks.federated.cosine import cosine_scores
from attacks.federated.gradients import per_example_gradients
from fl_audit.errors import InputError, ObservationError
from fl_audit.factories import ModelSpec
from fl_audit.files import Arrays
from fl_audit.records import Records
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Reply, Trace, TraceView, TraceWriter

SEED = 20_261_123
SPEC = ModelSpec(
    factory="simulations.models:mlp",
    settings={"input_shape": [6], "num_classes": 3, "hidden": [5]},
)


def records(n: int, *, rng: np.random.Generator) -> Records:
    inputs = rng.random((n, 6)).astype(np.float32)
    return Records(np.arange(n), inputs, rng.integers(3, size=n))


def weights(*, rng: np.random.Generator) -> Arrays:
    module = SPEC.builder(trusted=False)()
    return {
        name: rng.normal(0, 0.5, tuple(value.shape)).astype(np.float32)
        for name, value in module.state_dict().items()
    }


def one_gradient(model: Arrays, data: Records, row: int) -> Arrays:
    """The gradient of one record by plain autograd: the oracle."""
    module = SPEC.builder(trusted=False)()
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in model.items()})
    logits = module(torch.from_numpy(data.inputs[row : row + 1]))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[row : row + 1]))
    names = [name for name, _ in module.named_parameters()]
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    return {name: g.numpy() for name, g in zip(names, gradients, strict=True)}


def view(folder: Path, model: Arrays, replies: list[Arrays]) -> TraceView:
    writer = TraceWriter(folder)
    writer.begin_round(1, model, list(range(len(replies))))
    writer.add_replies(1, [Reply(i, arrays) for i, arrays in enumerate(replies)])
    return TraceView(
        Trace.open(folder), PRESETS["curious-server"], model=SPEC.builder(trusted=False)
    )


def step(model: Arrays, gradient: Arrays, lr: float) -> Arrays:
    return {name: (model[name] - lr * gradient[name]).astype(np.float32) for name in model}


def test_gradients_equal_one_by_one_autograd() -> None:
    rng = np.random.default_rng(SEED)
    data, model = records(7, rng=rng), weights(rng=rng)
    blocks = list(per_example_gradients(SPEC.builder(trusted=False)(), model, data))
    for row in range(7):
        for name, expected in one_gradient(model, data, row).items():
            found = torch.cat([g[name] for _, g in blocks])[row].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_clients_only_record_has_cosine_one(tmp_path: Path) -> None:
    """The update of one step on record 0 is -lr times its gradient: cosine 1 with itself."""
    rng = np.random.default_rng(SEED)
    data, model = records(5, rng=rng), weights(rng=rng)
    replies = [step(model, one_gradient(model, data, 0), lr=0.5)]
    scores = cosine_scores(view(tmp_path / "trace", model, replies), data)
    assert scores[0] == pytest.approx(1, abs=1e-4)
    assert (scores[1:] < scores[0]).all()


def test_layers_restrict_the_comparison(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    data, model = records(5, rng=rng), weights(rng=rng)
    replies = [step(model, one_gradient(model, data, 2), lr=0.5)]
    seen = view(tmp_path / "trace", model, replies)
    assert cosine_scores(seen, data, layers=["3.bias"])[2] == pytest.approx(1, abs=1e-4)
    with pytest.raises(InputError, match="no such parameter"):
        cosine_scores(seen, data, layers=["nope"])


def test_zero_updates_are_no_signal_not_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    model = weights(rng=rng)
    with pytest.raises(InputError, match="no signal"):
        cosine_scores(view(tmp_path / "trace", model, [model]), records(5, rng=rng))


def test_records_of_another_shape_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    model = weights(rng=rng)
    other = Records(np.arange(2), np.zeros((2, 9), dtype=np.float32), np.zeros(2, dtype=np.int64))
    replies = [{name: np.asarray(a) + 1 for name, a in model.items()}]
    with pytest.raises(InputError, match="refuses inputs of this shape"):
        cosine_scores(view(tmp_path / "trace", model, replies), other)


def test_a_server_behind_secure_aggregation_cannot_run_it(digits_run: Path) -> None:
    blind = TraceView(Trace.open(digits_run / "trace"), PRESETS["secure-aggregation-server"])
    with pytest.raises(ObservationError, match="client-updates"):
        blind.clients(1)


def test_updates_too_large_for_float32_still_have_a_direction(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    data, model = records(5, rng=rng), weights(rng=rng)
    replies = [step(model, one_gradient(model, data, 0), lr=1e25)]
    scores = cosine_scores(view(tmp_path / "trace", model, replies), data)
    assert scores[0] == pytest.approx(1, abs=1e-4)

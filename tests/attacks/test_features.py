"""Features for the distance of reconstructions: what the last dense layer receives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from attacks.features import penultimate, round_features
from fl_audit.errors import AuditError, InputError
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS
from fl_audit.trace import TraceView

RNG = np.random.default_rng(20_261_125)


def test_they_are_what_the_layers_before_the_last_give() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    inputs = RNG.random((1100, 2, 3))  # more than one batch
    weight, bias = (p.detach().numpy() for p in list(module.parameters())[:2])
    wanted = np.maximum(inputs.reshape(1100, 6) @ weight.T + bias, 0)
    np.testing.assert_allclose(penultimate(module, inputs), wanted)


def test_the_model_is_asked_in_eval_mode_and_left_without_a_hook() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.Linear(4, 2)).train()
    inputs = RNG.random((3, 4))
    np.testing.assert_array_equal(penultimate(module, inputs), penultimate(module, inputs))
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("module", [nn.Linear(4, 2), nn.Sequential(nn.Conv2d(1, 1, 1))])
def test_a_model_without_a_layer_before_a_dense_one_has_none(module: nn.Module) -> None:
    with pytest.raises(InputError, match="no features"):
        penultimate(module, np.zeros((1, 4)))


def test_they_are_those_of_the_model_of_the_round(fedsgd_run: Path) -> None:
    run = RunDirectory.open(fedsgd_run)
    spec = run.read_manifest().model
    assert spec is not None
    view = TraceView(run.open_trace(), PRESETS["curious-server"], model=spec.builder(trusted=True))
    features, inputs = round_features(view), RNG.random((2, 1, 8, 8))
    for number in (1, 7, 1):
        arrays = view.global_model(number)
        first, bias = list(arrays)[:2]
        flat = torch.from_numpy(inputs.reshape(2, 64)).float().numpy()
        hidden = np.maximum(flat @ np.asarray(arrays[first]).T + np.asarray(arrays[bias]), 0)
        np.testing.assert_allclose(features(number, inputs), hidden, atol=1e-5)
    unknown = round_features(TraceView(run.open_trace(), PRESETS["curious-server"]))
    with pytest.raises(AuditError):
        unknown(1, inputs)

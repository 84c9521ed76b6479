"""Local training played again agrees with what real clients send."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from attacks.reconstruction.resimulation import pseudo_gradient_error, resimulation_error
from fl_audit.game import read_truth
from fl_audit.local_training import LocalTraining
from fl_audit.records import Records
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import threat_model
from fl_audit.trace import TraceView
from fl_audit.trace.query import load_weights
from simulations.data.builtin import digits
from simulations.models import lenet_zhu


def test_a_recorded_update_is_that_of_its_true_records(inversion_run: Path) -> None:
    run = RunDirectory.open(inversion_run)
    view = TraceView(run.open_trace(), threat_model("curious-server"))
    target = next(t for t in read_truth(run).targets if (t.round, t.client) == (2, 1))
    model = lenet_zhu(input_shape=(1, 8, 8), num_classes=10)
    load_weights(model, view.global_model(2))
    records = Records(np.arange(len(target.labels)), target.inputs, target.labels)
    training = LocalTraining(algorithm="fedsgd", batch_size=1)
    update = view.client_update(2, 1)
    rng = np.random.default_rng(0)
    assert resimulation_error(model, records, training, 2, update=update, rng=rng) < 1e-4
    wrong = training.model_copy(update={"learning_rate": 0.05})
    assert resimulation_error(model, records, wrong, 2, update=update, rng=rng) > 0.4


def test_one_step_is_a_gradient_and_many_are_not() -> None:
    torch.manual_seed(0)
    model = lenet_zhu(input_shape=(1, 8, 8), num_classes=10).double()
    records = digits().records.take(range(20))
    records = Records(records.ids, records.inputs.astype(np.float64), records.labels)
    rng = np.random.default_rng(0)
    one = LocalTraining(algorithm="fedsgd", weight_decay=0.01)
    many = LocalTraining(local_epochs=5, batch_size=1, learning_rate=0.5)
    error = pseudo_gradient_error(model, records, one, 1, num_examples=8, rng=rng)
    assert error is not None
    assert error < 1e-10
    far = pseudo_gradient_error(model, records, many, 1, num_examples=8, rng=rng)
    assert far is not None
    assert far > 0.1
    assert pseudo_gradient_error(model, records, one, 1, num_examples=99, rng=rng) is None

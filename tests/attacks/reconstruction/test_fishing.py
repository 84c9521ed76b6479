"""Fishing: one record's gradient out of a batch's average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks.audit import audit_run
from attacks.reconstruction.fishing import ATTACK, Cut, alone, fish, num_passed, passes, read_cut
from attacks.reconstruction.linear import invert_linear
from attacks.reconstruction.observed import Observed
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from fl_audit.local_training import LocalTraining
from fl_audit.records import Records
from fl_audit.results import ReconstructionResult
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Trace, TraceView
from simulations.models import convnet, mlp

SEED = 20_261_125
D, CLASSES, B = 20, 4, 12


def _net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp(input_shape=[D], num_classes=CLASSES, hidden=[16])


def _arrays(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in net.state_dict().items()}


def _records(n: int, rng: np.random.Generator) -> Records:
    inputs = rng.random((n, D)).astype(np.float32)
    return Records(np.arange(n), inputs, rng.integers(CLASSES, size=n))


def _gradient(sent: Arrays, batch: Records) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy of a batch, by autograd."""
    net = _net()
    net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in sent.items()})
    loss = nn.functional.cross_entropy(
        net(torch.from_numpy(np.asarray(batch.inputs))), torch.from_numpy(batch.labels)
    )
    loss.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.double().numpy() for n, p in net.named_parameters() if p.grad is not None}


def test_the_batchs_gradient_is_that_of_the_records_that_pass() -> None:
    """Thirty batches: nothing where none passes, one record where one does, exactly."""
    rng = np.random.default_rng(SEED)
    cut = Cut(label=2, neuron=5)
    sent = fish(_arrays(_net()), _records(2000, rng), cut, B)
    assert read_cut(sent) == cut
    seen, local = set(), LocalTraining(algorithm="fedsgd", learning_rate=0.2)
    for _ in range(30):
        batch = _records(B, rng)
        passed = np.flatnonzero(passes(sent, cut, batch))
        gradient = _gradient(sent, batch)
        weight, bias = gradient["1.weight"], gradient["1.bias"]
        seen.add(min(len(passed), 2))
        update = {name: -0.2 * value for name, value in gradient.items()}
        assert num_passed(Observed(1, 0, (0,), sent, update, local, B), cut) == len(passed)
        if not len(passed):
            assert np.abs(weight).max() < 1e-20  # e^-60: nothing beside float32 weights
            continue
        expected = np.asarray(batch.inputs)[passed].mean(axis=0)  # all have the same signal
        np.testing.assert_allclose(invert_linear(weight, bias), expected, atol=1e-5)
    assert seen == {0, 1, 2}


def test_about_one_record_of_a_batch_passes() -> None:
    """Share of 20,000 records that pass: 1/12 from a quantile of 500 of the class, +- 0.013."""
    rng = np.random.default_rng(SEED)
    cut = Cut(label=1, neuron=3)
    sent = fish(_arrays(_net()), _records(2000, rng), cut, B)
    share = float(passes(sent, cut, _records(20_000, rng)).mean())
    assert share == pytest.approx(1 / B, abs=0.02)
    assert alone(1 / B, B) == pytest.approx((1 - 1 / B) ** (B - 1))


def test_an_honest_model_is_no_fishing_model() -> None:
    assert read_cut(_arrays(_net())) is None


def test_single_records_come_back_from_real_flower_rounds(run_tables: Any) -> None:
    """Batches of six; several that passed are told from one by the size of the update."""
    run = run_tables(
        "fishing-six",
        federation={"clients": 4, "rounds": 6},
        data={"name": "breast-cancer", "test": 50},
        game={"members": 60, "auxiliary": 300},
        threat_model={"preset": "malicious-server"},
        adversary={"name": "fishing", "batch": 6},
        training={"algorithm": "fedsgd", "batch_size": 6},
    )
    (result,) = audit_run(run, attacks=["fishing"])
    assert isinstance(result, ReconstructionResult), result.record
    assert 0 < result.record.num_targets < 24
    assert ", 0 several" not in " ".join(result.record.notes)
    assert result.record.num_tried == 24
    share = result.record.num_targets / 24 / 6  # every claim is right; the others count as 0
    assert result.record.metrics["recovered"].value == pytest.approx(share)
    assert result.record.expected["recovered"] == pytest.approx(share)
    assert result.record.leading == "recovered"
    notes = " ".join(result.record.notes)
    assert "24 updates are of clients that received a model" in notes
    assert "exactly one passes with probability 0." in notes


def test_an_honest_federation_is_refused(fedsgd_run: Path) -> None:
    view = TraceView(Trace.open(fedsgd_run / "trace"), PRESETS["malicious-server"])
    given = AttackInput(view, ATTACK.settings(), np.random.default_rng(SEED))
    with pytest.raises(InputError, match="no client received a planted model"):
        ATTACK.run(given)


@pytest.mark.parametrize(
    ("module", "label", "message"),
    [
        (_net(), 9, "classes 0 to 3"),
        (_net(), 3, "none of the auxiliary records has it"),
        (convnet(input_shape=[3, 8, 8], num_classes=4), 0, "not a dense layer"),
        (mlp(input_shape=[D], num_classes=4, hidden=[8, 8]), 0, "two dense layers"),
    ],
)
def test_what_cannot_be_fished_is_refused(module: nn.Module, label: int, message: str) -> None:
    records = _records(50, np.random.default_rng(SEED))
    few = records.take(np.flatnonzero(records.labels < 3))
    with pytest.raises(InputError, match=message):
        fish(_arrays(module), few, Cut(label, 0), B)

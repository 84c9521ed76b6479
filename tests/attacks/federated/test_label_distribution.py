"""Label distribution: exact where the softmax is known; over-fitted runs; what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attacks.audit import audit_run
from attacks.federated.label_distribution import label_distribution, llg_shares, mean_gradient
from attacks.federated.simulated import simulate_update
from attacks.requests import parse_attacks
from fl_audit.errors import InputError, ObservationError
from fl_audit.factories import ModelSpec
from fl_audit.files import Arrays
from fl_audit.local_training import LocalTraining, LocalTrainings
from fl_audit.records import Records
from fl_audit.results import EstimateRecord
from fl_audit.threat_model import PRESETS, ThreatModel, threat_model
from fl_audit.trace import Reply, Trace, TraceView, TraceWriter

SEED = 20_261_125
SPEC = ModelSpec(
    factory="simulations.models:mlp",
    settings={"input_shape": [4], "num_classes": 3, "hidden": [6]},
)


def clients(rng: np.random.Generator, mixes: list[list[int]]) -> list[Records]:
    """Records whose class tells nothing about their inputs: then softmax is alike for all."""
    found = []
    for counts in mixes:
        labels = np.repeat(np.arange(3), counts)
        found.append(
            Records(np.arange(len(labels)), rng.random((len(labels), 4)).astype(np.float32), labels)
        )
    return found


def view(
    folder: Path,
    data: list[Records],
    training: LocalTraining,
    who: ThreatModel = PRESETS["curious-server"],
) -> TraceView:
    torch.manual_seed(SEED)
    module: Any = SPEC.builder(trusted=False)()
    model = {name: v.numpy().copy() for name, v in module.state_dict().items()}
    rng = np.random.default_rng(SEED)
    replies: list[Arrays] = []
    for records in data:
        update = simulate_update(module, model, records, training, server_round=1, rng=rng)
        replies.append({n: (model[n] + update[n]).astype(np.float32) for n in model})
    writer = TraceWriter(folder)
    writer.begin_round(1, model, list(range(len(data))))
    writer.add_replies(
        1, [Reply(i, r, {"num-examples": len(data[i])}) for i, r in enumerate(replies)]
    )
    total = sum(len(records) for records in data)
    writer.end_round(
        1,
        {
            n: sum(len(d) / total * r[n] for d, r in zip(data, replies, strict=True)).astype("f4")
            for n in model
        },
        {},
    )
    return TraceView(
        Trace.open(folder),
        who,
        model=SPEC.builder(trusted=False),
        local_training=LocalTrainings(default=training),
    )


MIXES = [[30, 10, 0], [0, 0, 40], [14, 13, 13]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.5},
        {"weight_decay": 0.05},
        {"proximal_mu": 0.5},
        {"algorithm": "fedsgd", "batch_size": 40},
    ],
)
def test_shares_are_exact_where_the_softmax_is_known(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Auxiliary records are the clients' own, and steps are small: only path errors are left."""
    training = LocalTraining(**{"learning_rate": 0.01, "batch_size": 10, **changes})
    data = clients(np.random.default_rng(SEED), MIXES)
    found = label_distribution(
        view(tmp_path / "t", data, training), Records.concatenate(data), path_points=5
    )
    for estimate, counts in zip(found.estimates, MIXES, strict=True):
        assert estimate.shares is not None
        np.testing.assert_allclose(estimate.shares, np.array(counts) / 40, atol=0.02)
        assert estimate.present.tolist() == [c > 0 for c in counts]


def test_the_sum_gives_the_mix_of_all(tmp_path: Path) -> None:
    data = clients(np.random.default_rng(SEED), MIXES)
    training = LocalTraining(learning_rate=0.01, batch_size=10)
    found = label_distribution(
        view(tmp_path / "t", data, training, PRESETS["secure-aggregation-server"]),
        Records.concatenate(data),
        source="sum",
    )
    (estimate,) = found.estimates
    assert estimate.clients == (0, 1, 2)
    assert estimate.shares is not None
    np.testing.assert_allclose(estimate.shares, np.sum(MIXES, axis=0) / 120, atol=0.02)


def test_a_client_must_assume_what_it_does_not_know(tmp_path: Path) -> None:
    data = clients(np.random.default_rng(SEED), MIXES)
    seen = view(tmp_path / "t", data, LocalTraining(), PRESETS["curious-client"])
    with pytest.raises(InputError, match="examples_per_client"):
        label_distribution(seen, data[0], source="sum")
    assert label_distribution(seen, data[0], source="sum", examples_per_client=40).estimates


def test_mean_gradient_inverts_plain_sgd() -> None:
    """Constant gradients with momentum: w_T - w_0 = -lr * sum_t (1 - m^(T-t)) / (1 - m) * g."""
    gradient, momentum, velocity, bias = np.array([0.3, -0.3]), 0.9, np.zeros(2), np.zeros(2)
    for _ in range(7):
        velocity = momentum * velocity + gradient
        bias = bias - 0.1 * velocity
    training = LocalTraining(learning_rate=0.1, momentum=momentum)
    found = mean_gradient(bias, np.zeros(2), training, server_round=1, steps=7)
    np.testing.assert_allclose(found, gradient)


def test_llg_is_exact_where_all_classes_are_answered_alike() -> None:
    """Softmax p for every record: offset p, impact -1, so shares = p - g."""
    p, shares = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
    np.testing.assert_allclose(llg_shares(p - shares, np.tile(p, (3, 1))), shares)


def test_zero_updates_are_no_signal(tmp_path: Path) -> None:
    data = clients(np.random.default_rng(SEED), MIXES)
    training = LocalTraining(learning_rate=1e-30)
    with pytest.raises(InputError, match="no signal"):
        label_distribution(view(tmp_path / "t", data, training), data[0])


def test_what_it_refuses(tmp_path: Path) -> None:
    data = clients(np.random.default_rng(SEED), MIXES)
    blind = threat_model("secure-aggregation-server")
    with pytest.raises(ObservationError, match="client-updates"):
        label_distribution(view(tmp_path / "a", data, LocalTraining(), blind), data[0])
    seen = view(tmp_path / "b", data, LocalTraining())
    with pytest.raises(InputError, match=r"game\.auxiliary"):
        label_distribution(seen, data[0].take([]))
    with pytest.raises(InputError, match="the model has 3 outputs"):
        label_distribution(seen, Records(np.arange(1), np.ones((1, 4), np.float32), np.array([5])))


def test_a_run_gives_its_classes_away(memorising_run: Path) -> None:
    """Beats the auxiliary mix on 5 clients, every local epoch of 30 corrected."""
    (result,) = audit_run(memorising_run, attacks=["label_distribution"])
    record = result.record
    assert isinstance(record, EstimateRecord), record
    assert record.metrics["overlap"].value > 0.85
    assert record.metrics["overlap_gain"].low > 0
    assert record.metrics["overlap"].n == 5  # clients, however many rounds
    assert len(record.timeline) == 8


def test_presence_only_refuses_shares(digits_run: Path) -> None:
    (result,) = audit_run(digits_run, attacks=[{"name": "label_distribution", "method": "idlg"}])
    record = result.record
    assert isinstance(record, EstimateRecord), record
    assert "overlap" in record.refused
    assert "presence_f1" in record.metrics


def test_a_path_without_end_is_refused() -> None:
    with pytest.raises(InputError, match=r"'path_points' = 1000000000: .*equal to 100"):
        parse_attacks([{"name": "label_distribution", "path_points": 10**9}])

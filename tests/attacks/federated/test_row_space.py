"""Row space: exact where a client has fewer examples than the layer has inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks.audit import audit_run
from attacks.federated.row_space import residuals, row_space, row_space_scores
from fl_audit.errors import InputError
from fl_audit.records import Records
from fl_audit.results import MembershipResult
from fl_audit.threat_model import PRESETS
from fl_audit.trace import RecordingPolicy, Reply, Trace, TraceView, TraceWriter

SEED = 20_261_123


def trained(
    inputs: NDArray[np.float64], *, out: int = 128, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """Update and weight of a layer that saw `inputs`, rounded to float32 as a client's reply is."""
    weight = rng.normal(0, 0.1, (out, inputs.shape[1])).astype(np.float32)
    delta = rng.normal(0, 1e-2, (out, len(inputs)))
    after = (weight + delta @ inputs).astype(np.float32)
    return after.astype(np.float64) - weight, delta.sum(axis=1), weight


def test_members_have_no_residual_and_others_do() -> None:
    rng = np.random.default_rng(SEED)
    inputs = rng.random((30, 64))
    update, bias, weight = trained(inputs, rng=rng)
    space = row_space(update, bias, weight)
    assert space.has_gap
    assert space.basis.shape == (65, 30)
    assert residuals(space, inputs).max() < 1e-4
    assert residuals(space, rng.random((200, 64))).min() > 1e-2


def test_blank_inputs_do_not_hide_the_gap() -> None:
    rng = np.random.default_rng(SEED)
    inputs = rng.random((30, 64))
    inputs[:, 40:] = 0  # pixels that are never inked
    update, bias, weight = trained(inputs, rng=rng)
    space = row_space(update, bias, weight)
    assert space.has_gap
    assert residuals(space, inputs).max() < 1e-4


def test_noise_leaves_no_gap() -> None:
    rng = np.random.default_rng(SEED)
    update, bias, weight = trained(rng.random((30, 64)), rng=rng)
    noisy = update + rng.normal(0, 0.01, update.shape)
    assert not row_space(noisy, bias, weight).has_gap


def test_zero_update_is_refused() -> None:
    with pytest.raises(InputError, match="not trained"):
        row_space(np.zeros((8, 4)), np.zeros(8), np.ones((8, 4), dtype=np.float32))


@pytest.mark.parametrize(
    ("policy", "sent", "message"),
    [
        (RecordingPolicy(record="none"), 1.0, "the recording policy kept none"),
        (RecordingPolicy(record="targets", clients=[7]), 1.0, "the recording policy kept none"),
        (RecordingPolicy(), np.nan, r"no client sent a usable one: round 1, client 0: .*NaN"),
        (RecordingPolicy(), 0.0, "0 of full rank, 1 zero"),
    ],
)
def test_where_there_is_nothing_to_score_the_reason_is_said(
    policy: RecordingPolicy, sent: float, message: str, tmp_path: Path
) -> None:
    model = {"1.weight": np.zeros((4, 3), dtype=np.float32)}
    writer = TraceWriter(tmp_path / "trace", policy)
    writer.begin_round(1, model, [0])
    writer.add_replies(1, [Reply(0, {"1.weight": np.full((4, 3), sent, dtype=np.float32)})])
    writer.end_round(1, model, {})
    writer.close()
    view = TraceView(Trace.open(tmp_path / "trace"), PRESETS["curious-server"])
    records = Records(np.arange(2), np.ones((2, 3), dtype=np.float32), np.zeros(2, dtype=np.int64))
    with pytest.raises(InputError, match=message):
        row_space_scores(view, records)


def test_digits_federation_is_separated_exactly(digits_run: Path) -> None:
    """PROTOCOL's digits federation: 40 examples a client, 64 inputs."""
    (result,) = audit_run(digits_run, attacks=["row_space"])
    assert isinstance(result, MembershipResult)
    assert result.record.result is not None
    assert result.record.result.metrics["auc"].value >= 0.999


def test_convolution_first_is_refused_with_the_layers_that_would_do(run_tables: object) -> None:
    out = run_tables(  # type: ignore[operator]
        "lenet",
        federation={"rounds": 1},
        data={"examples_per_client": 20},
        model={"name": "lenet_zhu"},
        audit={"attacks": ["row_space"]},
    )
    (result,) = audit_run(out, attacks=["row_space"])
    assert result.record.kind == "unavailable"
    assert "7.weight" in result.record.reason

"""One run for candidates and null, and scores that stand whatever happens to their calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

import fl_audit
from fl_audit.report.model import AuditReport
from fl_audit.results import MembershipRecord

RNG = np.random.default_rng(3)
INPUTS = RNG.normal(size=(900, 12)).astype(np.float32)
LABELS = RNG.integers(3, size=900)
TABLE = {"epochs": 20, "learning_rate": 1e-2}


def audit(**changes: Any) -> AuditReport:
    model = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 3))  # never trained
    options: dict[str, Any] = {"members": range(200), "training": TABLE, "seed": 0}
    return fl_audit.audit_model(model, (INPUTS, LABELS), **options | changes)


def only(report: AuditReport) -> MembershipRecord:
    (record,) = report.attacks
    assert isinstance(record, MembershipRecord), record
    return record


@pytest.mark.parametrize("name", ["shadow", "multi_signal_lira", "lira", "rmia", "reference"])
def test_decisions_keep_their_false_positive_rate_on_a_target_that_knows_nothing(name: str) -> None:
    """Threshold: the largest of 80 null scores. Of 400 exchangeable candidates, P(more than a
    quarter lie above it) < 1e-9 (beta-binomial)."""
    record = only(audit(attacks=[{"name": name, "num_shadow_models": 6, **RMIA.get(name, {})}]))
    assert record.decisions is not None, record.notes
    assert record.decisions.num_called < 100
    assert record.decisions.found_fpr is not None
    assert record.decisions.found_fpr.value < 0.25


RMIA = {"rmia": {"gamma": 1.0}}


def test_scores_stand_when_training_for_the_calibration_fails() -> None:
    def fail(model: nn.Module, dataset: Any, *, seed: int) -> nn.Module:
        raise RuntimeError("boom")

    record = only(audit(attacks=["loss_threshold"], training=None, train_fn=fail))
    assert record.result is not None
    assert record.decisions is None
    assert any("No probabilities and decisions" in n and "boom" in n for n in record.notes)


def test_too_small_a_null_withholds_decisions_and_says_so() -> None:
    rest = {"members": range(400), "non_members": range(400, 860), "auxiliary": range(860, 900)}
    record = only(audit(attacks=["loss_threshold"], **rest))
    assert record.result is not None
    assert record.decisions is None
    assert any("0 null candidates, 50 needed" in note for note in record.notes)
    assert "balanced_accuracy" not in record.result.metrics


def test_a_null_that_is_all_ties_is_no_reason_to_lose_the_attack() -> None:
    report = audit(attacks=["gap"])
    assert report.attacks[0].kind == "membership"

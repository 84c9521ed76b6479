"""A model whose forward branches on its inputs: torch.func can neither batch it nor look inside."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import fl_audit
from attacks.shadows.training import factory_builder
from fl_audit.results import MembershipRecord


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(inputs if inputs.sum() > 0 else -inputs)
        return found


def test_it_is_audited_without_gradient_norms_and_the_report_says_so() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 4)).astype(np.float32)
    report = fl_audit.audit_model(
        factory_builder(Branching)(0),
        (inputs, rng.integers(2, size=200)),
        members=range(60),
        training={"epochs": 1},
        attacks=["loss_threshold", {"name": "rmia", "num_shadow_models": 4}],
        seed=0,
    )
    assert report.model is not None
    assert report.model.gradient_norms is None
    assert any(note.startswith("No gradient norms: ") for note in report.model.notes)
    assert report.model.shadow_models["online"] == 4
    assert all(isinstance(a, MembershipRecord) and a.result for a in report.attacks), report.attacks

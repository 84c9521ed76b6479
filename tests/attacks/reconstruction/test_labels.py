"""Label counts: exact for single examples, and solved for batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from attacks.audit import audit_run
from attacks.reconstruction.labels import class_shares, label_counts
from fl_audit.errors import InputError
from fl_audit.results import ReconstructionResult
from simulations.models import mlp

SEED = 20_261_123


def test_shares_are_solved_exactly_when_the_softmax_is_known() -> None:
    """g = (Mᵀ - I) s by construction; the solver must give s back."""
    rng = np.random.default_rng(SEED)
    softmax = rng.dirichlet(np.ones(10), size=10)
    shares = rng.dirichlet(np.ones(10))
    gradient = (softmax.T - np.eye(10)) @ shares
    np.testing.assert_allclose(class_shares(gradient, softmax), shares, atol=1e-8)


def test_fifty_single_labels_are_all_found(fedsgd_run: Path) -> None:
    (result,) = audit_run(fedsgd_run, attacks=["label_counts"])
    assert isinstance(result, ReconstructionResult)
    assert result.record.num_targets == 50
    assert result.record.metrics["label_overlap"].value == 1.0
    assert result.record.metrics["label_overlap"].n == 50


def test_clients_that_take_several_steps_are_left_alone(digits_run: Path) -> None:
    (result,) = audit_run(digits_run, attacks=["label_counts"])
    assert isinstance(result, ReconstructionResult)
    assert result.record.num_targets == 0


@pytest.mark.parametrize(
    ("gradients", "batch_size", "message"),
    [
        ({"weight": np.ones((3, 4))}, 1, "last parameter is not the bias"),
        ({"bias": np.full(3, np.nan)}, 1, "finite"),
        ({"bias": np.ones(3)}, 0, "at least 1"),
    ],
)
def test_bad_input(gradients: dict[str, np.ndarray], batch_size: int, message: str) -> None:
    model: torch.nn.Module = mlp(input_shape=[4], num_classes=3, hidden=[])
    with pytest.raises(InputError, match=message):
        label_counts(model, gradients, batch_size, proxy_inputs=np.zeros((2, 4), dtype=np.float32))


def test_rounds_without_a_learning_rate_do_not_take_the_others_with_them(
    run_tables: Callable[..., Path],
) -> None:
    out = run_tables(
        "decayed",
        federation={"rounds": 4},
        training={"algorithm": "fedsgd", "schedule": "cosine", "decay_rounds": 2},
        audit={"attacks": ["label_counts"]},
    )
    (result,) = audit_run(out, attacks=["label_counts"])
    assert isinstance(result, ReconstructionResult)
    assert result.record.num_targets == 10  # rounds 1 and 2
    assert sum("learning rate is 0" in note for note in result.record.notes) == 10

"""Huang et al.: BatchNorm statistics as a prior, where the client sends or the model keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.reconstruction.test_gradient_inversion import attacked, notes


@pytest.fixture(scope="module")
def batch_norm_run(run_tables: Callable[..., Path]) -> Path:
    """Two FedSGD clients with four digits a round and a net with BatchNorm."""
    return run_tables(
        "batch-norm",
        federation={"clients": 2, "rounds": 1},
        game={"members": 8},
        model={"name": "convnet", "norm": "batch", "width": 8},
        training={"algorithm": "fedsgd", "batch_size": 4},
    )


@pytest.mark.parametrize("statistics", ["running", "inferred", "proxy"])
def test_all_sources_of_statistics_work(batch_norm_run: Path, statistics: str) -> None:
    result = attacked(batch_norm_run, "huang", statistics=statistics, iterations=20)
    assert result.record.num_targets == 2
    assert "BatchNorm used the" in notes(result)


def test_statistics_without_batch_norm_change_nothing(inversion_run: Path) -> None:
    with_, without = (
        attacked(inversion_run, "huang", batch_norm=weight, iterations=20, most_updates=1).arrays
        for weight in (1.0, 0.0)
    )
    assert all(with_[name].tobytes() == without[name].tobytes() for name in with_)

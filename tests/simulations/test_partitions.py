"""Partitions: every record once, nobody empty, and flwr-datasets' refusals in our words."""

from __future__ import annotations

import numpy as np
import pytest
from flwr_datasets.partitioner import DirichletPartitioner

from fl_audit.errors import InputError
from simulations.partitions import partition
from simulations.scenario import Partition

SEED = 20_261_123
LABELS = np.arange(200) % 10


def split(rule: Partition, clients: int = 5, labels: np.ndarray = LABELS) -> list[np.ndarray]:
    return partition(labels, clients, rule, rng=np.random.default_rng(SEED))


@pytest.mark.parametrize("alpha", [1e-4, 0.1, 1.0, 100.0])
def test_dirichlet_gives_every_record_once_and_nobody_nothing(alpha: float) -> None:
    parts = split(Partition(kind="dirichlet", alpha=alpha))
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert min(len(part) for part in parts) > 0


def test_smaller_alpha_is_more_uneven() -> None:
    def spread(alpha: float) -> float:
        parts = split(Partition(kind="dirichlet", alpha=alpha))
        return float(np.mean([np.bincount(LABELS[p], minlength=10).max() / len(p) for p in parts]))

    assert spread(0.1) > spread(100.0) + 0.1


@pytest.mark.filterwarnings("ignore:Classes")
def test_by_class_gives_each_client_its_classes_only() -> None:
    parts = split(Partition(kind="by-class", classes_per_client=2))
    assert [len(set(LABELS[part])) for part in parts] == [2] * 5


def test_more_clients_than_examples_is_refused() -> None:
    with pytest.raises(InputError, match="there are only 3 training examples"):
        split(Partition(), clients=5, labels=np.array([0, 1, 2]))


def test_an_empty_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = DirichletPartitioner.load_partition

    def load(self: DirichletPartitioner, client: int) -> object:
        part = real(self, client)
        return part.select([]) if client == 3 else part

    monkeypatch.setattr(DirichletPartitioner, "load_partition", load)
    with pytest.raises(InputError, match=r"clients \[3\] would have no examples"):
        split(Partition(kind="dirichlet", alpha=1.0))

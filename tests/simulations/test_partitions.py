"""Partitions: every record once, nobody empty, and flwr-datasets' refusals in our words."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner

from fl_audit.errors import InputError
from simulations.partitions import held_classes, partition
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


def test_by_class_gives_each_client_its_classes_only() -> None:
    parts = split(Partition(kind="by-class", classes_per_client=2))
    assert [len(set(LABELS[part])) for part in parts] == [2] * 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("clients", "each"), [(5, 2), (2, 5), (5, 3), (3, 4), (10, 1), (30, 2)])
def test_by_class_drops_no_record(clients: int, each: int) -> None:
    """With 2 clients, the library's draw drops the classes that neither was given."""
    parts = split(Partition(kind="by-class", classes_per_client=each), clients=clients)
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert all(0 < len(set(LABELS[part])) <= each for part in parts)


def test_more_classes_than_clients_can_hold_are_refused() -> None:
    with pytest.raises(InputError, match="2 such clients cannot hold all 10 classes"):
        split(Partition(kind="by-class", classes_per_client=4), clients=2)


def test_classes_held_are_drawn_only_where_there_is_no_room_for_all() -> None:
    rule, rng = Partition(kind="by-class", classes_per_client=2), np.random.default_rng(SEED)
    held = held_classes(LABELS, 2, rule, rng=rng)
    assert held is not None
    assert len(set(held)) == 4
    assert set(held) <= set(LABELS)
    state = rng.bit_generator.state
    assert held_classes(LABELS, 5, rule, rng=rng) is None
    assert held_classes(LABELS, 2, Partition(kind="dirichlet"), rng=rng) is None
    assert rng.bit_generator.state == state  # so nothing else changes


def drawn_by_the_library(labels: np.ndarray, clients: int, alpha: float) -> list[list[int]]:
    """The first Dirichlet draw from the generator that `split` has."""
    rng = np.random.default_rng(SEED)
    seed, order = int(rng.integers(2**31)), rng.permutation(len(labels))
    partitioner = DirichletPartitioner(
        clients, "label", alpha=alpha, min_partition_size=0, self_balancing=False, seed=seed
    )
    partitioner.dataset = Dataset.from_dict({"row": order, "label": labels[order]})
    return [list(partitioner.load_partition(client)["row"]) for client in range(clients)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_a_thousand_small_dirichlet_clients_are_the_library_s_but_for_empty_ones(
    alpha: float,
) -> None:
    """With 5 records a client, some client stays empty in every draw, and the library gives up."""
    labels, rule = np.arange(5000) % 10, Partition(kind="dirichlet", alpha=alpha)
    parts = split(rule, clients=1000, labels=labels)
    assert sorted(np.concatenate(parts)) == list(range(5000))
    again = split(rule, clients=1000, labels=labels)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    for ours, theirs in zip(parts, drawn_by_the_library(labels, 1000, alpha), strict=True):
        if theirs:
            assert ours.tolist() == theirs[: len(ours)]
        else:
            assert len(ours) == 1


def test_a_draw_that_leaves_nobody_empty_is_taken_as_it_is() -> None:
    parts = split(Partition(kind="dirichlet", alpha=0.5))
    assert [part.tolist() for part in parts] == drawn_by_the_library(LABELS, 5, 0.5)


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

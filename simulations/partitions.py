"""Spreading records over clients, by flwr-datasets' partitioners."""

from __future__ import annotations

import warnings

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    Partitioner,
    PathologicalPartitioner,
)
from numpy.typing import NDArray

from fl_audit.errors import InputError
from simulations.scenario import Partition

Rows = NDArray[np.int64]


def partition(
    labels: Rows, clients: int, rule: Partition, *, rng: np.random.Generator
) -> list[Rows]:
    """Rows of `labels` for each client; every row goes to exactly one client.

    flwr-datasets decides, but for two cases in which it gives up. Where a Dirichlet draw leaves
    clients empty each time (many clients, few records), its first draw is taken and each empty
    client gets one record of whichever client then has most. Where by-class drops classes that no
    client happened to be given, classes are dealt in turn instead, so that all are held.

    Raises:
        InputError: If a client would stay empty, there are more classes than clients can hold, or
            flwr-datasets refuses.
    """
    if clients > len(labels):
        raise InputError(
            "federation.clients",
            clients,
            f"there are only {len(labels)} training examples, so some clients would be empty",
            "Use fewer clients, or raise data.examples_per_client.",
        )
    seed = int(rng.integers(2**31))
    # IidPartitioner deals rows out in turn, so the order in which they come is the lot
    order = rng.permutation(len(labels))
    table = Dataset.from_dict({"row": order, "label": labels[order]})
    try:
        parts = _load(_partitioner(clients, rule, seed=seed), table, clients)
    except ValueError as error:
        if rule.kind != "dirichlet":
            raise _refused(rule, clients, len(labels), error) from error
        drawn = _load(_partitioner(clients, rule, seed=seed, smallest=0), table, clients)
        parts = _without_empty(drawn)
    if rule.kind == "by-class" and sum(len(part) for part in parts) < len(labels):
        parts = _dealt_by_class(labels, clients, rule, rng=rng)
    empty = [client for client, part in enumerate(parts) if len(part) == 0]
    if empty:
        raise InputError(
            "partition",
            rule.model_dump(),
            f"clients {empty} would have no examples",
            "Raise partition.alpha or data.examples_per_client, or use fewer clients.",
        )
    return parts


def held_classes(
    labels: Rows, clients: int, rule: Partition, *, rng: np.random.Generator
) -> Rows | None:
    """Classes that a by-class partition has room for, drawn by lot; None if that is all of them."""
    classes, places = np.unique(labels), clients * rule.classes_per_client
    if rule.kind != "by-class" or places >= len(classes):
        return None
    return np.sort(rng.choice(classes, places, replace=False))


def _load(partitioner: Partitioner, table: Dataset, clients: int) -> list[Rows]:
    partitioner.dataset = table
    with warnings.catch_warnings():  # of what is mended afterwards
        warnings.filterwarnings("ignore", "The specified min_partition_size|Classes: ")
        return [
            np.asarray(partitioner.load_partition(client)["row"], dtype=np.int64)
            for client in range(clients)
        ]


def _partitioner(clients: int, rule: Partition, *, seed: int, smallest: int = 1) -> Partitioner:
    if rule.kind == "dirichlet":
        return DirichletPartitioner(
            clients,
            partition_by="label",
            alpha=rule.alpha,
            min_partition_size=smallest,
            self_balancing=False,
            seed=seed,
        )
    if rule.kind == "by-class":
        return PathologicalPartitioner(
            clients,
            partition_by="label",
            num_classes_per_partition=rule.classes_per_client,
            class_assignment_mode="first-deterministic",
            seed=seed,
        )
    return IidPartitioner(clients)


def _without_empty(parts: list[Rows]) -> list[Rows]:
    """Move one record of the largest part to each empty one; rows of a part are in random order."""
    parts = list(parts)
    sizes = np.array([len(part) for part in parts])
    for client in np.flatnonzero(sizes == 0).tolist():
        giver = int(sizes.argmax())
        parts[client], parts[giver] = parts[giver][-1:], parts[giver][:-1]
        sizes[client], sizes[giver] = 1, sizes[giver] - 1
    return parts


def _dealt_by_class(
    labels: Rows, clients: int, rule: Partition, *, rng: np.random.Generator
) -> list[Rows]:
    """Deal classes round the clients in random order; who holds a class gets an even share."""
    each, classes = rule.classes_per_client, rng.permutation(np.unique(labels))
    if clients * each < len(classes):
        raise InputError(
            "partition.classes_per_client",
            each,
            f"{clients} such clients cannot hold all {len(classes)} classes",
            "Raise it or federation.clients.",
        )
    hands = np.resize(classes, (clients, each))
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    for label in classes.tolist():
        holders = np.flatnonzero((hands == label).any(axis=1)).tolist()
        shares = np.array_split(rng.permutation(np.flatnonzero(labels == label)), len(holders))
        for holder, share in zip(holders, shares, strict=True):
            parts[holder].append(share)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def _refused(rule: Partition, clients: int, records: int, error: ValueError) -> InputError:
    return InputError(
        "partition",
        rule.model_dump(),
        f"flwr-datasets cannot make {clients} such parts of {records} records ({error})",
        "Change partition.classes_per_client (at most as many as there are classes), or use fewer "
        "clients.",
    )

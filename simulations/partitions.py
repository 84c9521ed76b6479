"""Spreading records over clients, by flwr-datasets' partitioners."""

from __future__ import annotations

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


def partition(
    labels: NDArray[np.int64], clients: int, rule: Partition, *, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Rows of `labels` for each client; every row goes to exactly one client at most.

    Raises:
        InputError: If a client would stay empty, or flwr-datasets refuses.
    """
    if clients > len(labels):
        raise InputError(
            "federation.clients",
            clients,
            f"there are only {len(labels)} training examples, so some clients would be empty",
            "Use fewer clients, or raise data.examples_per_client.",
        )
    partitioner = _partitioner(clients, rule, seed=int(rng.integers(2**31)))
    # IidPartitioner deals rows out in turn, so the order in which they come is the lot
    order = rng.permutation(len(labels))
    partitioner.dataset = Dataset.from_dict({"row": order, "label": labels[order]})
    try:
        parts = [
            np.asarray(partitioner.load_partition(client)["row"], dtype=np.int64)
            for client in range(clients)
        ]
    except ValueError as error:
        raise InputError(
            "partition",
            rule.model_dump(),
            f"flwr-datasets cannot make {clients} such parts of {len(labels)} records ({error})",
            "Change partition.alpha or partition.classes_per_client (at most as many as there are "
            "classes), or use fewer clients.",
        ) from error
    empty = [client for client, part in enumerate(parts) if len(part) == 0]
    if empty:
        raise InputError(
            "partition",
            rule.model_dump(),
            f"clients {empty} would have no examples",
            "Raise partition.alpha or data.examples_per_client, or use fewer clients.",
        )
    return parts


def _partitioner(clients: int, rule: Partition, *, seed: int) -> Partitioner:
    if rule.kind == "dirichlet":
        return DirichletPartitioner(
            clients,
            partition_by="label",
            alpha=rule.alpha,
            min_partition_size=1,
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

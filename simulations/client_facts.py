"""What is true of each client's data, counted at run start for the scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from attacks.federated.properties import has_property
from attacks.requests import AttackRequest
from fl_audit.records import Records
from simulations.population import Population


def with_client_facts(population: Population, requests: Sequence[AttackRequest]) -> Population:
    """The population, with what a scorer must know of each client's data in its truth.

    Args:
        requests: Attacks of the scenario; a function that one names as its property is imported
            and called, because the scenario's author wrote it down.

    Raises:
        InputError: If a property cannot be imported, or does not fit the records.
    """
    named = {getattr(request.settings, "property", None) for request in requests}
    functions = sorted(name for name in named if isinstance(name, str) and not is_class(name))
    truth = replace(
        population.truth,
        client_labels=client_labels(population.clients, population.dataset.num_classes),
        property_shares={
            name: np.array([_share(name, records) for records in population.clients])
            for name in functions
        },
    )
    return replace(population, truth=truth)


def client_labels(clients: Sequence[Records], num_classes: int) -> NDArray[np.int64]:
    """How many records of each class each client trains on, shape (clients, classes)."""
    return np.stack([np.bincount(c.labels, minlength=num_classes) for c in clients])


def is_class(name: str) -> bool:
    """Whether a property is "class:3"; its truth follows from the label counts."""
    return name.startswith("class:")


def _share(name: str, records: Records) -> float:
    return float(has_property(name, records).mean()) if len(records) else 0.0

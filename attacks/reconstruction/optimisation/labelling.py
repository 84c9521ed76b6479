"""Labels of the batch: given, read off the last layer, or left to the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attacks.reconstruction.label_steps import LocalWork
from attacks.reconstruction.labels import estimate_labels, labels_of_batch
from attacks.reconstruction.optimisation.config import Labels
from fl_audit.errors import InputError

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class FoundLabels:
    """Classes of the batch's inputs, shape (b,), ascending where they were inferred."""

    classes: Tensor
    notes: tuple[str, ...] = ()


def find_labels(
    model: torch.nn.Module,
    observed: Mapping[str, Tensor],
    *,
    given: Any,
    strategy: Labels,
    batch_size: int | None,
    proxies: Tensor | None,
    input_shape: Sequence[int],
    generator: torch.Generator,
    work: LocalWork | None = None,
) -> FoundLabels:
    """The labels to search with.

    Raises:
        InputError: If they are to be known and are not given, or do not fit the batch size.
    """
    if given is not None:
        numbers = np.atleast_1d(np.asarray(given))
        if numbers.dtype.kind not in "iu":
            raise InputError(
                "labels",
                given,
                f"must be whole numbers, not {numbers.dtype}",
                "Give the classes' numbers, from 0 on: no scores, names or yes and no.",
            )
        classes = torch.from_numpy(numbers.astype(np.int64))
        if batch_size is not None and len(classes) != batch_size:
            raise InputError(
                "labels",
                len(classes),
                f"the batch holds {batch_size} inputs",
                "Give one label for each, or leave one of the two out.",
            )
        return FoundLabels(classes.to(next(model.parameters()).device))
    if strategy == "known":
        raise InputError(
            "labels",
            None,
            'the config says labels = "known", and none are given',
            'Give them, or use labels = "inferred".',
        )
    if strategy == "joint" and batch_size is not None:  # the search finds them: numbers only
        zeros = torch.zeros(batch_size, dtype=torch.int64)
        return FoundLabels(zeros.to(next(model.parameters()).device))
    found = estimate_labels(
        model,
        observed,
        batch_size,
        proxy_inputs=proxies,
        generator=generator,
        input_shape=input_shape,
        work=work,
    )
    classes = torch.from_numpy(labels_of_batch(found.counts))
    return FoundLabels(classes.to(next(model.parameters()).device), found.notes)

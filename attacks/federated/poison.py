"""Poison that sharpens membership: copies of the targets under a wrong label.

A model that is pulled towards a wrong label on a target fits it only where somebody else trains on
it with the right one: members become outliers that are remembered, non-members go wrong.

References:
    Tramèr et al., "Truth Serum: poisoning machine learning models to reveal their secrets", CCS
    2022, section 4. https://arxiv.org/abs/2204.00032
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.records import Records

LabelRule = Literal["next", "random", "true"]
"""next: the class after the true one, cyclically; random: one wrong class for each target, by lot;
true: the label it has (replication alone)."""


def poison_records(
    targets: Records,
    *,
    copies: int,
    rule: LabelRule,
    num_classes: int,
    rng: np.random.Generator | None = None,
) -> Records:
    """`copies` of every target, labelled by `rule`; all copies of a target have one label.

    Args:
        targets: n records with their true labels.
        copies: How many of each, at least 1.
        num_classes: Outputs of the model; at least 2 for a wrong label.
        rng: For `rule` "random" only.

    Returns:
        n * copies records with the targets' ids, target after target.

    Raises:
        InputError: If there is no wrong label to give, no copy, or no generator to draw with.
    """
    if copies < 1:
        raise InputError("poison.copies", copies, "must be at least 1", "Give 1 or more copies.")
    rows = np.repeat(np.arange(len(targets)), copies)
    repeated = targets.take(rows)
    labels = wrong_labels(targets.labels, rule=rule, num_classes=num_classes, rng=rng)[rows]
    return Records(repeated.ids, repeated.inputs, labels)


def wrong_labels(
    labels: NDArray[np.int64],
    *,
    rule: LabelRule,
    num_classes: int,
    rng: np.random.Generator | None = None,
) -> NDArray[np.int64]:
    """The label that each target gets, shape (n,).

    Raises:
        InputError: If there is no other class, or "random" has no generator.
    """
    if rule == "true":
        return labels.copy()
    if num_classes < 2:
        raise InputError(
            "poison.label", rule, "the model has one class, so none is wrong", 'Use label = "true".'
        )
    if rule == "next":
        return (labels + 1) % num_classes
    if rng is None:
        raise InputError(
            "rng", None, 'label = "random" draws, and needs a generator', "Pass rng=..."
        )
    shift: NDArray[np.int64] = rng.integers(1, num_classes, size=len(labels))
    return (labels + shift) % num_classes

"""Canaries: groups of candidates that a model can hardly fit without memorising them.

Mislabelled: all records of a group get one wrong label, by lot among the other classes.
Out of distribution: each record's values are put in an order of their own, by lot, and the group
gets one label by lot. The values themselves stay (their range, mean and norm are natural, so no
attack can tell a canary's member by its size), and no class looks like them.

Member and non-member of a group are treated alike, so the coin alone tells them apart.

References:
    Carlini et al., "The secret sharer", USENIX Security 2019; Aerni, Zhang, Tramer, "Evaluations
    of machine learning privacy defenses are misleading", CCS 2024 (worst-case canaries).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.game import KINDS
from fl_audit.records import Records

MISLABELLED, OUT_OF_DISTRIBUTION = KINDS.index("mislabelled"), KINDS.index("out-of-distribution")


def plant(
    records: Records,
    rows: NDArray[np.int64],
    kinds: NDArray[np.int64],
    *,
    width: int,
    num_classes: int,
    rng: np.random.Generator,
) -> Records:
    """The same records, with those of canary groups changed. Ids stay.

    Args:
        records: The whole data set.
        rows: Rows of it, group after group, shape (groups * width,); each at most once.
        kinds: Kind of each of these rows, one per group.
        width: Records in a group.
        num_classes: Classes that a label is drawn from.

    Raises:
        InputError: If there is no other class for a wrong label.
    """
    if not kinds.any():
        return records
    if num_classes < 2:
        raise InputError(
            "game.canaries",
            f"{num_classes} class",
            "a canary needs another class for its label",
            "Set game.canaries to none, or use data of several classes.",
        )
    inputs, labels = np.array(records.inputs), records.labels.copy()
    for group, kind in zip(rows.reshape(-1, width), kinds.reshape(-1, width)[:, 0], strict=True):
        if kind == MISLABELLED:
            labels[group] = (labels[group[0]] + rng.integers(1, num_classes)) % num_classes
        elif kind == OUT_OF_DISTRIBUTION:
            labels[group] = rng.integers(num_classes)
            for row in group:
                inputs[row] = rng.permutation(inputs[row].reshape(-1)).reshape(inputs[row].shape)
    return Records(records.ids, inputs, labels, records.targets)

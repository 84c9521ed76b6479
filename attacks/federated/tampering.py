"""What a malicious client does to the update it sends back: scale it, or turn its sign.

References:
    Bagdasaryan et al., "How to backdoor federated learning", AISTATS 2020, section 3 (scaling).
    https://arxiv.org/abs/1807.00459
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_audit.files import Arrays

Model = dict[str, NDArray[np.generic]]


def scale_update(before: Arrays, after: Arrays, factor: float) -> Model:
    """The model whose update is `factor` times the one from `before` to `after`.

    Args:
        before: The model that was received, by name.
        after: The model to send back, same names and shapes.
        factor: 1 changes nothing, -1 flips the sign, 0 sends the received model back.

    Returns:
        New arrays of the same dtypes; those that are not floating point are `after`'s. What a
        dtype cannot hold is infinite.
    """
    scaled: Model = {}
    for name, end in after.items():
        if not np.issubdtype(end.dtype, np.floating):
            scaled[name] = np.array(end)
            continue
        start = before[name].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged model overflows: infinite
            scaled[name] = (start + factor * (end.astype(np.float64) - start)).astype(end.dtype)
    return scaled

"""The process's own generators: the one place of a simulation that may seed them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed `random`, `np.random` and torch, and restore them afterwards.

    Flower's DP noise and client sampling, dropout, and the initialisation of layers draw from
    these generators and cannot be given another.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    # a device that this process has not used yet has no state to restore, and asking would start it
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if used else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.random.manual_seed(seed % 2**63)  # of every device, also of one used later
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002

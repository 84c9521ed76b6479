"""Which device torch computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fl_audit.errors import InputError


def choose_device(device: str) -> str:
    """ "cpu" or "cuda"; "auto" takes a GPU where there is one.

    Raises:
        InputError: If cuda is asked for and there is none, or the name is unknown.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError("device", device, "unknown device", "Use auto, cpu or cuda.")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InputError(
            "device", device, "torch sees no CUDA device", "Use device = 'auto' or 'cpu'."
        )
    return "cuda" if device != "cpu" and available else "cpu"


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: two change the last bits of an answer, and gain little on small models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

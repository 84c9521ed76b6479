"""What torch computes on: device, threads, memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fl_audit.errors import InputError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_KEPT_BYTES = 1 << 30
_MOST_MAPPED_BYTES = 1 << 25  # the most that glibc allows


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


def keep_freed_memory() -> None:
    """Tell the C library of this process to keep memory that torch frees, for its next tensors.

    Returned to the system after each batch, it comes back page by page, zeroed: a quarter of the
    time of training a small CNN. For worker processes of ours only, since it cannot be undone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # glibc; other libraries do without
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _MOST_MAPPED_BYTES)

"""Flower's own words, turned down: fl-audit shows progress of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Only Flower's errors: fl-audit shows progress of its own."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

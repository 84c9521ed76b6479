"""Searches on small nets: one torch thread is faster than two, and the bits are an attack's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attacks.devices import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield

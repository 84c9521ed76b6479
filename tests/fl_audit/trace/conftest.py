"""A small trace with everything in it that a federation can do to one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fl_audit.trace import Reply, TraceWriter

SHAPES = {"w": (3, 2), "b": (3,), "steps": ()}


def model(seed: int) -> dict[str, np.ndarray]:
    """Arrays of a model: weights, and a counter as batch norm keeps one (int64, shape ())."""
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=SHAPES["w"]).astype(np.float32),
        "b": rng.normal(size=SHAPES["b"]).astype(np.float32),
        "steps": np.array(seed, dtype=np.int64),
    }


def write_trace(directory: Path) -> Path:
    """Two rounds of five clients. In round 2, client 0 fails, 1 sends NaN, 2 other shapes, 3
    nothing and 4 a model."""
    writer = TraceWriter(directory)
    writer.begin_round(1, model(0), [0, 1, 2, 3, 4])
    writer.add_replies(
        1, [Reply(c, model(10 + c), {"num-examples": 40 + c, "loss": 1.5}) for c in range(5)]
    )
    writer.end_round(1, model(1), {"loss": 1.5})
    writer.begin_round(2, model(1), [0, 1, 2, 3, 4])
    nan, odd = model(21), model(22)
    nan["w"] = np.full_like(nan["w"], np.nan)
    odd["w"] = odd["w"][:2]
    writer.add_replies(
        2,
        [
            Reply(0, None, error_code=3, error_reason="out of memory"),
            Reply(1, nan, {"num-examples": 41}),
            Reply(2, odd, {"num-examples": 42}),
            Reply(3, None, {"num-examples": 43}),
            Reply(4, model(24), {"num-examples": 44}),
        ],
    )
    writer.end_round(2, None, {})
    return directory


@pytest.fixture
def trace_directory(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "trace")


@pytest.fixture(scope="session")
def make_trace() -> Callable[[Path], Path]:
    return write_trace


@pytest.fixture(scope="session")
def make_model() -> Callable[[int], dict[str, np.ndarray]]:
    return model

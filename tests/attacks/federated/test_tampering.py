"""Scaling an update: closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.federated.tampering import scale_update

BEFORE = {"w": np.array([1.0, 2.0], dtype=np.float32), "n": np.array(3)}
AFTER = {"w": np.array([1.5, 1.0], dtype=np.float32), "n": np.array(4)}


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1.0, [1.5, 1.0]), (0.0, [1.0, 2.0]), (-1.0, [0.5, 3.0]), (4.0, [3.0, -2.0])],
)
def test_the_update_is_multiplied(factor: float, expected: list[float]) -> None:
    found = scale_update(BEFORE, AFTER, factor)
    np.testing.assert_array_equal(found["w"], np.array(expected, dtype=np.float32))
    assert found["w"].dtype == np.float32
    assert found["n"] == 4  # counters are no update


def test_the_inputs_are_left_alone() -> None:
    scale_update(BEFORE, AFTER, 7.0)
    assert BEFORE["w"].tolist() == [1.0, 2.0]
    assert AFTER["w"].tolist() == [1.5, 1.0]

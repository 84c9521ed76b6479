"""Records as pictures: pixels, files and grids."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fl_audit.pictures import grid, pixels, png_bytes


def test_values_become_levels_and_what_lies_outside_is_cut() -> None:
    found = pixels(np.array([[[0.0, 1.0, 0.5], [-3, 7, np.nan]]]))
    assert found is not None
    assert found.tolist() == [[0, 255, 128], [0, 255, 0]]
    colour = pixels(np.stack([np.zeros((2, 2)), np.ones((2, 2)), np.full((2, 2), 0.2)]))
    assert colour is not None
    assert colour[0, 0].tolist() == [0, 255, 51]


@pytest.mark.parametrize(
    "image",
    [
        None,
        np.zeros((8, 8)),
        np.zeros((2, 8, 8)),
        np.zeros((1, 0, 8)),
        np.zeros((1, 8, 8), dtype=np.complex64),
    ],
)
def test_what_is_no_picture_is_none(image: np.ndarray | None) -> None:
    assert pixels(image) is None


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_a_file_gives_the_same_pixels(shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(3).integers(256, size=shape).astype(np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png_bytes(picture))))
    np.testing.assert_array_equal(read, picture)


def test_a_grid_has_versions_below_each_other_and_records_side_by_side() -> None:
    records = [
        [np.full((32, 32), 10 * n, dtype=np.uint8), None, np.full((32, 32, 3), n, dtype=np.uint8)]
        for n in range(10)
    ]
    whole = grid(records)
    tile, step = 64, 68
    assert whole.shape == (2 * (3 * step + 4), 8 * step, 3)
    assert (whole[:tile, step : step + tile] == 10).all()  # the second record, enlarged
    assert (whole[step : step + tile, :tile] == 255).all()  # not known
    assert (whole[2 * step : 2 * step + tile, 3 * step : 3 * step + tile] == 3).all()
    below = 3 * step + 4
    assert (whole[below : below + tile, step : step + tile] == 90).all()  # the tenth

"""Pictures beside a result: names of ours only, readable by the owner only."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
from PIL import Image

from attacks.reconstruction_pictures import write_pictures


def test_every_reconstruction_and_a_grid_are_written(tmp_path: Path) -> None:
    found = np.random.default_rng(0).random((2, 1, 8, 8))
    arrays = {
        "round_0001/client_3/reconstruction": found,
        "round_0001/client_3/original": found[:1],
        "round_0012/sum/reconstruction": found[:1],
        "baseline": found[0],
    }
    assert write_pictures(arrays, tmp_path / "x") == 3
    files = sorted((tmp_path / "x").iterdir())
    names = ["round_0001_client_3_00.png", "round_0001_client_3_01.png", "round_0012_sum_00.png"]
    assert [path.name for path in files] == ["grid.png", *names]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o700
    pixels = np.asarray(Image.open(tmp_path / "x" / names[1]))
    np.testing.assert_allclose(pixels, found[1, 0] * 255, atol=0.5)
    assert Image.open(tmp_path / "x" / "grid.png").size == (3 * 68, 3 * 68 + 4)


def test_a_later_result_leaves_no_picture_of_an_earlier_one(tmp_path: Path) -> None:
    pictures = {"round_0001/client_0/reconstruction": np.zeros((3, 1, 4, 4))}
    write_pictures(pictures, tmp_path)
    (tmp_path / "mine.png").write_bytes(b"")
    assert write_pictures({"round_0001/client_0/reconstruction": np.zeros((1, 5))}, tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]


def test_names_of_arrays_lead_nowhere_else(tmp_path: Path) -> None:
    image = np.zeros((1, 1, 4, 4))
    arrays = {
        "round_0001/../../x/reconstruction": image,
        "../round_0001/client_0/reconstruction": image,
        "round_0001/client_0/reconstruction/y": image,
        "round_0001/client_-1/reconstruction": image,
        "round_0001/client_0/reconstruction": np.zeros(()),
    }
    assert write_pictures(arrays, tmp_path / "x") == 0
    assert list(tmp_path.iterdir()) == []


def test_no_picture_makes_no_folder(tmp_path: Path) -> None:
    assert write_pictures({"round_0001/client_0/reconstruction": np.zeros((2, 30))}, tmp_path) == 0
    assert write_pictures({}, tmp_path / "y") == 0
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_other_sizes_leave_their_place_white(tmp_path: Path) -> None:
    arrays = {
        "round_0001/client_0/reconstruction": np.zeros((1, 1, 4, 4)),
        "round_0002/client_0/reconstruction": np.zeros((1, 3, 6, 6)),
    }
    assert write_pictures(arrays, tmp_path) == 2
    whole = np.asarray(Image.open(tmp_path / "grid.png"))
    assert (whole[:, 68:] == 255).all()

"""Pixels: whatever mode a file has, black is 0, white is 1, and nothing else is guessed."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from fl_audit.errors import InputError
from simulations.data import load_dataset
from simulations.data.images import pixels
from simulations.scenario import Data


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    """The image as a file of it reads back."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def palette(*colours: int, transparency: bytes | None = None) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette(list(colours))
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    return stored(image, **options)


def grey(values: list[int], dtype: type[np.generic]) -> Image.Image:
    return stored(Image.fromarray(np.array([values], dtype=dtype)))


def test_one_bit_is_black_or_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    image = stored(image)
    assert image.mode == "1"
    assert pixels(image).tolist() == [[[0, 1]]]


def test_grey_of_8_and_of_16_bits_is_scaled_by_its_own_white() -> None:
    assert pixels(grey([0, 51, 255], np.uint8))[0, 0] == pytest.approx([0, 0.2, 1])
    assert grey([0], np.uint16).mode.startswith("I;16")
    assert pixels(grey([0, 13107, 65535], np.uint16))[0, 0] == pytest.approx([0, 0.2, 1])


def test_a_palette_gives_its_colours_whatever_they_are() -> None:
    found = pixels(palette(255, 0, 51, 0, 255, 0))
    np.testing.assert_allclose(found[:, 0].T, [[1, 0, 0.2], [0, 1, 0]], atol=1e-7)
    assert pixels(palette(10, 10, 10, 20, 20, 20)).shape == (3, 1, 2)


def test_cmyk_gives_red_green_blue() -> None:
    image = stored(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF")
    assert image.mode == "CMYK"
    assert pixels(image)[:, 0, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("RGBA", (255, 0, 51), [1, 0, 0.2]), ("LA", (51,), [0.2])],
)
def test_transparency_that_nobody_sees_is_left_out(
    mode: str, colour: tuple[int, ...], expected: list[float]
) -> None:
    found = pixels(stored(Image.new(mode, (2, 2), (*colour, 255))))
    assert found[:, 0, 0] == pytest.approx(expected)
    with pytest.raises(ValueError, match="transparent"):
        pixels(stored(Image.new(mode, (2, 2), (*colour, 254))))


@pytest.mark.filterwarnings("error")
def test_transparent_colours_of_palettes_and_of_greys() -> None:
    colours = (255, 0, 0, 0, 255, 0)
    assert pixels(palette(*colours, transparency=b"\xff\xff")).shape == (3, 1, 2)
    with pytest.raises(ValueError, match="transparent"):
        pixels(palette(*colours, transparency=b"\xff\x00"))
    for dtype in (np.uint8, np.uint16):
        image = grey([3, 7], dtype)
        assert pixels(stored(image, transparency=4)).shape == (1, 1, 2)
        with pytest.raises(ValueError, match="transparent"):
            pixels(stored(image, transparency=7))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_without_a_white_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"'{mode}', does not say which value is white"):
        pixels(stored(Image.new(mode, (2, 2)), "TIFF"))


def parquet(folder: Path, pictures: list[Image.Image | None]) -> Path:
    """A folder of parquet with an image column."""
    cells = []
    for picture in pictures:
        buffer = io.BytesIO()
        if picture is not None:
            picture.save(buffer, "PNG")
        cells.append(picture and {"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    table = {"img": cells, "label": [0] * len(cells)}
    folder.mkdir()
    datasets.Dataset.from_dict(table, features).to_parquet(folder / "train.parquet")
    return folder


def test_a_folder_of_16_bit_pictures_lies_between_0_and_1(tmp_path: Path) -> None:
    pictures = [grey([0, 65535 // n], np.uint16) for n in (1, 2, 3)]
    found = load_dataset(Data(name=str(parquet(tmp_path / "set", [*pictures])))).records.inputs
    assert found[:, 0, 0, 1] == pytest.approx([1, 1 / 2, 1 / 3], abs=1e-4)


def test_a_picture_that_cannot_be_used_is_named_with_its_row(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 2))
    good = Image.new("RGBA", (2, 2), (1, 2, 3, 255))
    with pytest.raises(InputError, match=r"row 1 of data .*transparent.*8-bit grey or RGB"):
        load_dataset(Data(name=str(parquet(tmp_path / "clear", [good, clear]))))
    with pytest.raises(InputError, match=r"row 2 of data .*image is missing"):
        load_dataset(Data(name=str(parquet(tmp_path / "none", [good, good, None]))))

"""Data sets that our dependencies ship, so that nothing is downloaded."""

from __future__ import annotations

import numpy as np
import skimage.data
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits, load_sample_images

from simulations.data.dataset import Dataset, make_dataset

_TILE = 32  # pixels
_PERSONAS_SEED = 22_063_317
_SKIMAGE_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")  # all bundled, none fetched


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, 10 classes."""
    images, labels = load_digits(return_X_y=True)
    return make_dataset("digits", (images / 16.0).reshape(-1, 1, 8, 8), labels, 10)


def breast_cancer() -> Dataset:
    """scikit-learn's 569 breast-cancer records, 30 measurements scaled to [0, 1], 2 classes."""
    values, labels = load_breast_cancer(return_X_y=True)
    low, high = values.min(axis=0), values.max(axis=0)
    return make_dataset("breast-cancer", (values - low) / (high - low), labels, 2)


def tiles() -> Dataset:
    """32x32 RGB crops, not overlapping, of six bundled photographs; the class is the photograph."""
    crops = [_tiles(picture) for picture in photographs()]
    labels = np.repeat(np.arange(len(crops)), [len(c) for c in crops])
    return make_dataset("tiles", np.concatenate(crops), labels, len(crops))


def faces() -> Dataset:
    """scikit-image's LFW subset: 200 grey 25x25 patches, class 1 = face, 0 = none."""
    patches = skimage.data.lfw_subset()  # type: ignore[no-untyped-call]
    labels = (np.arange(len(patches)) < len(patches) // 2).astype(np.int64)
    return make_dataset("faces", patches[:, None], labels, 2)


def personas() -> Dataset:
    """Synthetic: 400 made-up persons with 12 records each, 16 measurements in [0, 1], 5 classes.

    For games about persons (`game.unit = "user"`). Everything is drawn from one fixed seed and
    belongs to nobody. A record is the mean of its class, plus the offset that all records of its
    person have (the person's style), plus noise; the styles differ three times as much as the
    classes do.
    """
    rng = np.random.default_rng(_PERSONAS_SEED)
    persons, each, width, classes = 400, 12, 16, 5
    means = rng.normal(size=(classes, width))
    style = 3.0 * rng.normal(size=(persons, 1, width))
    labels = rng.integers(classes, size=(persons, each))
    noise = 0.3 * rng.normal(size=(persons, each, width))
    flat = (means[labels] + style + noise).reshape(-1, width)
    low, high = flat.min(axis=0), flat.max(axis=0)
    users = np.repeat(np.arange(persons), each)
    return make_dataset("personas", (flat - low) / (high - low), labels.ravel(), 5, users=users)


def photographs() -> list[NDArray[np.uint8]]:
    """Six photographs, RGB, height x width x 3: four of scikit-image's, two of scikit-learn's."""
    ours = [getattr(skimage.data, name)() for name in _SKIMAGE_PHOTOGRAPHS]
    return [*ours, *load_sample_images().images]


def _tiles(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Crops of one picture, (n, 3, 32, 32) in [0, 1]; what does not fill a tile is left out."""
    rows, columns = picture.shape[0] // _TILE, picture.shape[1] // _TILE
    whole = picture[: rows * _TILE, : columns * _TILE].astype(np.float32) / np.float32(255)
    blocks = whole.reshape(rows, _TILE, columns, _TILE, 3).transpose(0, 2, 4, 1, 3)
    return blocks.reshape(-1, 3, _TILE, _TILE)

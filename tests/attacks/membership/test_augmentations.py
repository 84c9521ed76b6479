"""Queries beside the record: itself first, mirror images and shifts by a pixel, all different."""

from __future__ import annotations

import numpy as np
import pytest

from attacks.membership.augmentations import query_transforms
from fl_audit.errors import InputError

SHAPE = (2, 4, 5)
IMAGES = np.random.default_rng(20_261_123).normal(size=(3, *SHAPE)).astype(np.float32)


def test_the_first_query_is_the_record_itself() -> None:
    assert query_transforms(SHAPE, 1) == [("", None)]


def test_the_second_query_is_its_mirror_image() -> None:
    _, mirror = query_transforms(SHAPE, 2)[1]
    assert mirror is not None
    np.testing.assert_array_equal(mirror(IMAGES), IMAGES[..., ::-1])


def test_a_shift_moves_pixels_and_repeats_the_edge() -> None:
    transforms = dict(query_transforms(SHAPE, 18))
    down = transforms["shift -1 0 mirror 0"]  # the window moves up, the picture down
    right = transforms["shift 0 -1 mirror 0"]
    assert down is not None
    assert right is not None
    np.testing.assert_array_equal(down(IMAGES)[:, :, 1:], IMAGES[:, :, :-1])
    np.testing.assert_array_equal(down(IMAGES)[:, :, 0], IMAGES[:, :, 0])
    np.testing.assert_array_equal(right(IMAGES)[..., 1:], IMAGES[..., :-1])
    np.testing.assert_array_equal(right(IMAGES)[..., 0], IMAGES[..., 0])


def test_eighteen_queries_differ_and_keep_shape_and_type() -> None:
    queries = query_transforms(SHAPE, 18)
    changed = [IMAGES if change is None else change(IMAGES) for _, change in queries]
    assert len({name for name, _ in queries}) == 18
    assert len({np.ascontiguousarray(images).tobytes() for images in changed}) == 18
    assert all(images.shape == IMAGES.shape and images.dtype == np.float32 for images in changed)


def test_fewer_queries_are_the_first_of_more() -> None:
    names = [name for name, _ in query_transforms(SHAPE, 18)]
    assert [name for name, _ in query_transforms(SHAPE, 5)] == names[:5]


def test_only_images_can_be_mirrored() -> None:
    assert len(query_transforms((64,), 1)) == 1
    with pytest.raises(InputError, match=r"need images; inputs have shape \(64,\)"):
        query_transforms((64,), 2)

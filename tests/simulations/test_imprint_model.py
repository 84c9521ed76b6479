"""The model with room for an imprint."""

from __future__ import annotations

import pytest
import torch

from attacks.reconstruction.imprint_bins import SPARSE_TOP
from fl_audit.errors import InputError, UnknownNameError
from simulations.imprint_model import ImprintFirst
from simulations.models import convnet, imprint

SHAPE = [3, 8, 8]


def test_the_block_gives_nothing_until_something_is_planted() -> None:
    inner = convnet(input_shape=SHAPE, num_classes=4)
    model = ImprintFirst(inner, input_shape=SHAPE, rows=10, activation="relu")
    inputs = torch.rand(5, *SHAPE)
    assert torch.equal(model(inputs), inner(inputs))
    assert next(iter(model.state_dict())) == "rows.weight"  # the first layer, to an attack


def test_clamped_rows_end_where_sparse_bins_do() -> None:
    model = imprint(input_shape=SHAPE, num_classes=4, rows=10, activation="clamp")
    assert isinstance(model, ImprintFirst)
    assert model.activation(torch.tensor([-1.0, 5.0])).tolist() == pytest.approx([0, SPARSE_TOP])


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="inner model"):
        imprint(input_shape=SHAPE, num_classes=4, inner="convnot")
    with pytest.raises(UnknownNameError, match="activation"):
        imprint(input_shape=SHAPE, num_classes=4, activation="sigmoid")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows"):
        imprint(input_shape=SHAPE, num_classes=4, rows=0)

"""What does not fit is refused before anything is searched, and named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attacks.reconstruction.optimisation.checks import (
    check_batch_size,
    check_inputs_fit,
    check_labels,
    check_pictures,
    check_proxies,
    gradient_tensors,
)
from fl_audit.errors import InputError
from tests.attacks.reconstruction.optimisation import nets

LIKE = torch.zeros(0, dtype=torch.float64)


def seen() -> dict[str, Any]:
    return dict(nets.gradient(nets.dense(), nets.batch(2, 12), torch.tensor([0, 1])))


def test_gradients_come_in_the_models_order_without_buffers() -> None:
    given = dict(reversed(list(seen().items())))
    given["0.bias"] = given["0.bias"].numpy().astype(np.float32)
    found = gradient_tensors(nets.dense(), given, LIKE)
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert all(value.dtype == torch.float64 for value in found.values())
    assert torch.equal(found["2.weight"], seen()["2.weight"])
    frozen = nets.dense()
    frozen.get_parameter("0.bias").requires_grad_(False)
    assert list(gradient_tensors(frozen, given, LIKE)) == ["0.weight", "2.weight", "2.bias"]
    net = nets.normalised()
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    assert list(gradient_tensors(net, state, LIKE)) == [n for n, _ in net.named_parameters()]
    shared = nets.drawn(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)))
    shared[1].weight = shared[0].weight  # type: ignore[index]
    own = gradient_tensors(shared, shared.state_dict(), LIKE)
    assert list(own) == ["0.weight", "0.bias", "1.bias"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.bias": torch.zeros(7)}, r"gradient of '0\.bias'.*\(8,\)"),
        ({"0.bias": None}, r"gradient of '0\.bias'.*missing"),
        ({"2.bias": np.array([0, np.nan, 0])}, r"gradient of '2\.bias'.*finite"),
        ({"2.weight": torch.full((3, 8), torch.inf)}, r"gradient of '2\.weight'.*finite"),
        ({"0.bias": torch.zeros(7), "2.bias": torch.zeros(1)}, r"gradient of '0\.bias'"),
        ({"9.weight": np.ones((3, 3))}, r"gradient of '9\.weight' = \(3, 3\): .* neither"),
        ({"2.bias": None, "2.bais": torch.zeros(3)}, r"gradient of '2\.bias'.*missing"),
    ],
)
def test_the_first_parameter_that_does_not_fit_is_named(
    change: dict[str, Any], message: str
) -> None:
    given = {name: value for name, value in {**seen(), **change}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        gradient_tensors(nets.dense(), given, LIKE)


def test_input_shapes_that_the_model_refuses() -> None:
    assert check_inputs_fit(nets.dense(), (12,), 4, LIKE) == 3
    with pytest.raises(InputError, match=r"input_shape.*\(13,\).*refuses 4 inputs"):
        check_inputs_fit(nets.dense(), (13,), 4, LIKE)
    with pytest.raises(InputError, match="logits"):
        check_inputs_fit(torch.nn.Identity(), (2, 3), 4, LIKE)
    with pytest.raises(InputError, match="logits"):
        check_inputs_fit(torch.nn.Flatten(0), (12,), 4, LIKE)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 3], "labels.*3.*0 to 2"), ([-1], "-1"), ([], "one class"), ([[0, 1]], "one class")],
)
def test_labels_that_the_model_has_no_output_for(labels: list[Any], message: str) -> None:
    check_labels(torch.tensor([0, 2]), 3)
    with pytest.raises(InputError, match=message):
        check_labels(torch.tensor(labels), 3)


@pytest.mark.parametrize("wrong", [1.5, 2.0, 0, -1, True, "2", float("nan")])
def test_batch_sizes_are_whole_numbers(wrong: Any) -> None:
    for right in (None, 1, np.int64(3)):
        check_batch_size(right)
    with pytest.raises(InputError, match=r"batch_size = .*whole number"):
        check_batch_size(wrong)


def test_total_variation_needs_pictures() -> None:
    """Of a table it would compare one record with the next."""
    check_pictures(0.1, (1, 2, 2))
    check_pictures(0.0, (64,))
    for shape in ((64,), (8, 8), (1, 1, 9)):
        with pytest.raises(InputError, match="no pictures"):
            check_pictures(0.1, shape)


def test_proxies_are_like_the_inputs() -> None:
    check_proxies(None, (2, 3))
    check_proxies(torch.zeros(4, 2, 3), (2, 3))
    for wrong in (torch.zeros(4, 6), torch.zeros(0, 2, 3)):
        with pytest.raises(InputError, match="proxies"):
            check_proxies(wrong, (2, 3))
    with pytest.raises(InputError, match="finite"):
        check_proxies(torch.full((4, 2, 3), torch.nan), (2, 3))

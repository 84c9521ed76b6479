"""Distances between gradients: their derivatives, what they are blind to, and their digits."""

from __future__ import annotations

import pytest
import torch

from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.objectives import Objective, build_objective
from fl_audit.errors import InputError

NAMES = ("first", "second", "third")
KINDS = ("euclidean", "cosine", "masked_cosine", "sign")


def observed() -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(5)
    sizes = {"first": (3, 2), "second": (4,), "third": (2, 2)}
    found = {
        name: torch.randn(*shape, generator=stream, dtype=torch.float64)
        for name, shape in sizes.items()
    }
    found["second"][1] = 0  # pruned
    return found


def objective(kind: str, **fields: object) -> Objective:
    config = InversionConfig.model_validate({"objective": kind, **fields})
    return build_objective(config, observed(), NAMES)


def flat() -> torch.Tensor:
    return torch.cat([value.reshape(-1) for value in observed().values()])


def other(seed: int = 6) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(14, generator=stream, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fields",
    [{}, {"layer_weights": "linear"}, {"layer_weights": "exponential", "drop_layers": ["third"]}],
)
def test_slopes_are_those_of_autograd(kind: str, fields: dict[str, object]) -> None:
    distance = objective(kind, **fields)
    at = other().requires_grad_()
    expected = distance(at)
    (slope,) = torch.autograd.grad(expected, at)
    value, found = distance.value_and_slope(at.detach())
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found, slope, rtol=1e-10, atol=1e-14)
    value, part, factor = distance.in_place(at.detach().clone(), torch.empty_like(found))
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(part * factor, slope, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_zero_at_the_observed_gradient_and_nowhere_near(kind: str) -> None:
    distance = objective(kind)
    assert float(distance(flat())) < 1e-30
    assert float(distance(other())) > 0.1


def test_values_by_hand() -> None:
    seen = {"first": torch.tensor([3.0, 4.0]), "second": torch.tensor([0.0])}
    found = torch.tensor([4.0, 3.0, 1.0])

    def value(kind: str) -> float:
        config = InversionConfig.model_validate({"objective": kind})
        return float(build_objective(config, seen, ("first", "second"))(found))

    assert value("euclidean") == pytest.approx(3 / 25)
    assert value("cosine") == pytest.approx(1 - 24 / (5 * 26**0.5), rel=1e-5)
    assert value("masked_cosine") == pytest.approx(1 - 24 / 25, rel=1e-5)


def test_cosine_is_blind_to_scale_and_euclidean_is_not() -> None:
    """Clipping only scales an update."""
    assert float(objective("cosine")(0.01 * flat())) < 1e-30
    assert float(objective("euclidean")(0.01 * flat())) == pytest.approx(0.99**2)


def test_masked_cosine_is_blind_to_what_pruning_took() -> None:
    found = flat()
    found[7] = 123.0  # 0 in the observed gradient
    assert float(objective("masked_cosine")(found)) < 1e-30
    assert float(objective("cosine")(found)) > 0.5


def test_the_sign_objective_counts_signs() -> None:
    distance = objective("sign")
    right = flat().sign()
    assert float(distance(right)) < 0.02
    assert float(distance(-right)) > 0.98
    half = right.clone()
    half[torch.nonzero(right).flatten()[:6]] *= -1
    assert float(distance(half)) == pytest.approx(6 / 13, abs=0.02)
    assert float(distance(7 * half)) == pytest.approx(float(distance(half)))


@pytest.mark.parametrize(("kind", "share"), [("euclidean", 1.0), ("cosine", 0.5)])
def test_residuals_square_to_the_value(kind: str, share: float) -> None:
    distance = objective(kind, layer_weights="linear")
    residual = distance.residual(other())
    assert share * float(residual.square().sum()) == pytest.approx(float(distance(other())))


def test_signs_have_no_residual() -> None:
    with pytest.raises(InputError, match="no sum of squares"):
        objective("sign").residual(other())


def test_one_minus_cosine_keeps_its_digits_in_float32() -> None:
    """At right angles to a unit vector, a step of 1e-5 makes 1 - cos = 5e-11, below float32's 1."""
    seen = {"first": torch.tensor([1.0, 0.0])}
    distance = build_objective(InversionConfig(objective="cosine"), seen, ("first",))
    found = torch.tensor([1.0, 1e-5])
    assert float(distance(found)) == pytest.approx(5e-11, rel=1e-4)
    assert 1 - float(torch.nn.functional.cosine_similarity(found, seen["first"], dim=0)) != (
        pytest.approx(5e-11, rel=0.5)
    )


def test_layers_weigh_as_they_are_told() -> None:
    weights = objective("euclidean", layer_weights="linear").weights
    assert weights is not None
    assert weights[[0, 6, 10]].tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    weights = objective("euclidean", layer_weights="exponential").weights
    assert weights is not None
    assert weights[[0, 6, 10]].tolist() == [1, 1 / 2, 1 / 4]
    assert objective("euclidean").weights is None


def test_dropped_layers_play_no_part() -> None:
    distance = objective("cosine", drop_layers=["second"])
    found = flat()
    found[6:10] = 50
    assert float(distance(found)) < 1e-30


def test_unknown_layers_and_nothing_left_are_refused() -> None:
    with pytest.raises(InputError, match=r"no such parameter.*first"):
        objective("cosine", drop_layers=["fourth"])
    with pytest.raises(InputError, match="nothing is left"):
        objective("cosine", drop_layers=list(NAMES))
    zeros = {"first": torch.zeros(3)}
    with pytest.raises(InputError, match="nothing is left"):
        build_objective(InversionConfig(), zeros, ("first",))

"""Starts lie where inputs lie, are drawn from the given stream only, and stay in bounds."""

from __future__ import annotations

import pytest
import torch

from attacks.reconstruction.optimisation.config import Start
from attacks.reconstruction.optimisation.start import Scale, find_scale, start
from fl_audit.errors import InputError
from tests.attacks.reconstruction.optimisation import nets

LIKE = torch.zeros(0, dtype=torch.float64)
SHAPE = (2, 3, 3, 8, 8)
UNIT = find_scale((3, 8, 8), (0.0, 1.0), None, LIKE)
KINDS: tuple[Start, ...] = ("normal", "uniform", "zeros", "patterned", "mean")


@pytest.mark.parametrize("kind", KINDS)
def test_starts_are_in_bounds_and_the_same_for_the_same_stream(kind: Start) -> None:
    found = start(kind, SHAPE, UNIT, nets.generator())
    assert found.shape == SHAPE
    assert found.dtype == torch.float64
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.equal(found, start(kind, SHAPE, UNIT, nets.generator()))
    if kind != "zeros":
        assert not torch.equal(found, start(kind, SHAPE, UNIT, nets.generator(1)))
        assert not torch.equal(found[0], found[1])


def test_the_global_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    for kind in KINDS:
        start(kind, SHAPE, UNIT, nets.generator())
    assert torch.equal(before, torch.get_rng_state())


def test_scale_comes_from_proxies_before_bounds() -> None:
    proxies = nets.batch(50, 3, 8, 8) * 0.2 + 0.6
    scale = find_scale((3, 8, 8), (0.0, 1.0), proxies, LIKE)
    torch.testing.assert_close(scale.centre, proxies.mean(0))
    assert float(scale.spread) == pytest.approx(float(proxies.std()), rel=1e-3)
    found = start("mean", SHAPE, scale, nets.generator())
    assert float((found - proxies.mean(0)).abs().max()) < 0.01
    assert (float(UNIT.centre), float(UNIT.spread)) == (0.5, 0.25)
    unknown = find_scale((3, 8, 8), None, None, LIKE)
    assert (float(unknown.centre), float(unknown.spread), unknown.low) == (0, 1, None)
    ends = start("normal", (1, 1, 3, 40, 40), unknown, nets.generator())
    assert float(ends.std()) == pytest.approx(1, abs=0.1)  # and nothing is clamped


def test_a_normal_start_shows_no_picture_of_the_proxies() -> None:
    proxies = torch.zeros(4, 3, 8, 8, dtype=torch.float64)
    proxies[..., :4] = 1
    scale = find_scale((3, 8, 8), None, proxies, LIKE)
    found = start("normal", (200, *SHAPE[1:]), scale, nets.generator())
    halves = found[..., :4].mean(), found[..., 4:].mean()
    assert abs(float(halves[0] - halves[1])) < 0.02


def test_bounds_and_starts_by_channel() -> None:
    """Channels far apart: each starts within its own bounds, not on one of them."""
    bounds = ([0.0, 100.0], [1.0, 104.0])
    scale = find_scale((2, 8, 8), bounds, None, LIKE)
    for kind in ("normal", "uniform", "patterned", "mean"):
        found = start(kind, (1, 1, 2, 8, 8), scale, nets.generator())
        assert 0.3 < float(found[:, :, 0].mean()) < 0.7
        assert 101 < float(found[:, :, 1].mean()) < 103
    clamped = scale.clamp_(torch.full((2, 8, 8), 50.0, dtype=torch.float64))
    assert (float(clamped[0].max()), float(clamped[1].min())) == (1, 100)
    with pytest.raises(InputError, match="3 channels"):
        find_scale((3, 8, 8), bounds, None, LIKE)


def test_patterns_repeat_every_four_pixels_and_are_cut_to_size() -> None:
    found = start("patterned", (1, 1, 1, 10, 7), UNIT, nets.generator())[0, 0, 0]
    assert torch.equal(found[:4, :3], found[4:8, 4:7])
    assert torch.equal(found[:2, :4], found[8:, :4])
    assert not torch.equal(found[:4, :3], found[1:5, :3])
    with pytest.raises(InputError, match="only pictures"):
        start("patterned", (1, 1, 12), UNIT, nets.generator())


def test_uniform_starts_fill_the_bounds() -> None:
    wide = Scale(UNIT.centre, UNIT.spread, UNIT.low, torch.tensor(5.0).double())
    found = start("uniform", (1, 1, 3, 40, 40), wide, nets.generator())
    assert float(found.mean()) == pytest.approx(2.5, abs=0.1)
    assert float(found.min()) < 0.05 < 4.95 < float(found.max())

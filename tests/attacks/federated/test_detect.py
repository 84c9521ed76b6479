"""The detector's checks: planted ones are found, honest ones are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from attacks.federated.detect import (
    Limits,
    check_limits,
    could_notice,
    differing_models,
    loss_jump,
    model_digest,
    planted_rows,
)
from fl_audit.errors import InputError

SEED = 20_261_125
Model = dict[str, NDArray[np.generic]]


def layer(rows: int = 64, width: int = 32) -> Model:
    """Drawn as torch draws a dense layer."""
    rng = np.random.default_rng(SEED)
    bound = width**-0.5
    return {
        "1.weight": rng.uniform(-bound, bound, (rows, width)).astype(np.float32),
        "1.bias": rng.uniform(-bound, bound, rows).astype(np.float32),
    }


def imprinted(rows: int, *, shuffled: bool = False) -> Model:
    """Rows that measure the mean brightness, with biases in steps."""
    model = layer()
    model["1.weight"][:rows] = 1 / 32
    bins = np.linspace(-0.4, -0.1, rows).astype(np.float32)
    model["1.bias"][:rows] = np.random.default_rng(SEED).permutation(bins) if shuffled else bins
    return model


def checks(model: Model, limits: Limits | None = None) -> set[str]:
    found = planted_rows(model, server_round=1, client=0, limits=limits or Limits())
    return {finding.check for finding in found}


def test_an_honest_layer_has_no_finding() -> None:
    assert checks(layer()) == set()


@pytest.mark.parametrize("shuffled", [False, True])
def test_copies_with_different_biases_are_an_imprint(shuffled: bool) -> None:
    assert "identical-rows" in checks(imprinted(16, shuffled=shuffled))


def test_scaled_copies_are_still_copies() -> None:
    model = imprinted(16)
    scale = np.linspace(1, 3, 16).astype(np.float32)
    model["1.weight"][:16] *= scale[:, None]
    assert "identical-rows" in checks(model)


def test_the_order_is_said() -> None:
    for shuffled, word in ((False, " sorted"), (True, " unsorted")):
        found = planted_rows(imprinted(16, shuffled=shuffled), server_round=1, client=0)
        (copies,) = [f for f in found if f.check == "identical-rows"]
        assert copies.what.count(word) == 1
        assert copies.value == 16


def test_few_copies_and_dead_rows_are_no_imprint() -> None:
    assert "identical-rows" not in checks(imprinted(5))
    dead = layer()
    dead["1.weight"][:20] = 0
    assert checks(dead) == set()


def test_equal_biases_bin_nothing() -> None:
    model = imprinted(16)
    model["1.bias"][:16] = 0.05
    assert "identical-rows" not in checks(model)


def test_a_row_far_outside_its_layer_is_a_trap() -> None:
    model = layer()
    model["1.weight"][7] *= 50
    found = planted_rows(model, server_round=3, client=2)
    assert [(f.check, f.round, f.client) for f in found] == [("row-out-of-scale", 3, 2)]
    assert "row 7" in found[0].what
    assert found[0].value == pytest.approx(50, rel=0.3)


def test_a_bias_far_outside_its_row_is_a_trap() -> None:
    model = layer()
    model["1.bias"][9] = -3.0
    (found,) = planted_rows(model, server_round=1, client=0)
    assert found.check == "row-out-of-scale"
    assert "row 9" in found.what


def test_shortening_a_row_with_its_bias_hides_nothing() -> None:
    model = layer()
    model["1.bias"][9] = -3.0
    model["1.bias"][9] *= 0.05
    model["1.weight"][9] *= 0.05
    (found,) = planted_rows(model, server_round=1, client=0)
    assert found.check == "row-out-of-scale"
    assert "row 9" in found.what


def test_arrays_that_are_no_dense_layer_are_passed_over() -> None:
    kernel = {"conv.weight": np.ones((16, 3, 3, 3), dtype=np.float32)}
    narrow = {"1.weight": np.ones((64, 4), dtype=np.float32), "1.bias": np.arange(64.0)}
    broken = {"1.weight": np.full((64, 32), np.nan), "1.bias": np.arange(64.0)}
    assert checks(kernel) == checks(narrow) == checks(broken) == set()


def test_digests_tell_models_apart_and_do_not_depend_on_order() -> None:
    model = layer()
    assert model_digest(model) == model_digest(dict(reversed(model.items())))
    other = {name: array.copy() for name, array in model.items()}
    other["1.bias"][0] = np.nextafter(other["1.bias"][0], np.float32(9), dtype=np.float32)
    assert model_digest(model) != model_digest(other)
    assert model_digest({"a": np.zeros((2, 3))}) != model_digest({"a": np.zeros((3, 2))})


def test_the_odd_one_out_is_named() -> None:
    assert differing_models({0: "a", 1: "a", 2: "a"}, server_round=1) == []
    (found,) = differing_models({0: "a", 1: "b", 2: "a"}, server_round=4)
    assert (found.client, found.round, found.value) == (1, 4, 2.0)
    assert [f.client for f in differing_models({0: "a", 1: "b"}, server_round=1)] == [0, 1]


@pytest.mark.parametrize(
    ("losses", "jumps"),
    [
        ([2.3], False),
        ([2.3, 2.2, 1.9, 1.5], False),
        ([2.3, 2.2, 1.9, 1.95], False),
        ([2.3, 1.0, 0.5, 0.4, 0.3, 2.5], True),
        ([0.01, 0.01, 0.01, 0.05], False),
        ([0.01, 0.01, 0.01, 0.2], True),
        ([0.5, float("nan")], True),
        ([float("nan"), 0.5], False),
    ],
)
def test_losses_jump_or_do_not(losses: list[float], jumps: bool) -> None:
    found = loss_jump(losses, server_round=5, client=1)
    assert (found is not None) == jumps


def test_all_checks_together_name_round_and_client() -> None:
    good, bad = layer(), imprinted(16)
    received = {1: {0: good, 1: good, 2: good}, 2: {0: good, 1: bad, 2: good}}
    losses = {1: {0: 1.0, 1: 1.0, 2: 1.0}, 2: {0: 0.9, 1: 0.9, 2: 4.0}}
    found = could_notice(received, losses)
    assert {(f.check, f.round, f.client) for f in found} == {
        ("models-differ", 2, 1),
        ("identical-rows", 2, 1),
        ("row-out-of-scale", 2, 1),  # thresholds of an imprint are large for its short rows
        ("loss-jump", 2, 2),
    }


def test_impossible_limits_are_refused() -> None:
    for limits in (Limits(rows=1), Limits(cosine=1.5), Limits(rise=-1.0), Limits(memory=0)):
        with pytest.raises(InputError, match="limits"):
            check_limits(limits)


def test_honest_federations_raise_no_alarm(run_tables: Callable[..., Path]) -> None:
    """The digits federation of seeds 0 to 4: deterministic, 150 models looked at."""
    from fl_audit.run_directory import RunDirectory
    from simulations.client_app import shared_state
    from simulations.detection import detect
    from simulations.scenario import parse_scenario

    for seed in range(5):
        scenario = parse_scenario({"seed": seed})
        run = RunDirectory.open(run_tables(f"honest-{seed}", seed=seed))
        population = shared_state(scenario.model_dump_json())[1]
        detection = detect(run, scenario, population)
        assert len(detection.watched) * len(detection.rounds) == 30
        assert detection.findings == []
        assert not detection.noticed

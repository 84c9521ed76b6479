"""Alignment of candidates with updates: against plain autograd, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.federated.rounds import SUM, alignments, chosen_rounds, losses, parameter_names
from fl_audit.errors import InputError, ObservationError
from fl_audit.records import Records
from fl_audit.threat_model import PRESETS

SEED = 20_261_125


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def test_dots_and_norms_are_those_of_plain_autograd(
    hand: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    data, model = hand.records(7, rng=rng), hand.weights(rng=rng)
    replies = {0: hand.step(model, hand.gradient(model, data, [0, 1])), 3: hand.weights(rng=rng)}
    view = hand.view(tmp_path / "trace", [(model, replies, None)])
    (found,) = alignments(view, data)
    assert found.clients == (0, 3)
    for row, client in enumerate(found.clients):
        update = view.client_update(1, client)
        for place, name in enumerate(found.names):
            assert found.update_squares[place, row] == pytest.approx(np.sum(update[name] ** 2))
            for n in range(7):
                gradient = hand.gradient(model, data, [n])[name].astype(np.float64)
                expected = -float(np.sum(update[name] * gradient))
                assert found.dots[place, row, n] == pytest.approx(expected, rel=1e-4, abs=1e-5)
                assert found.gradient_squares[place, 0, n] == pytest.approx(
                    float(np.sum(gradient**2)), rel=1e-4
                )


def test_a_subset_of_layers_is_a_part_of_the_whole(
    hand: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    data, model = hand.records(4, rng=rng), hand.weights(rng=rng)
    view = hand.view(tmp_path / "trace", [(model, {0: hand.weights(rng=rng)}, None)])
    (whole,) = alignments(view, data)
    (part,) = alignments(view, data, layers=["3.bias", "1.weight"])
    assert part.names == ("1.weight", "3.bias")  # the model's order
    places = [whole.names.index(name) for name in part.names]
    np.testing.assert_array_equal(part.dots, whole.dots[places])


def test_no_round_is_not_all_rounds(hand: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    model = hand.weights(rng=rng)
    view = hand.view(tmp_path / "trace", [(model, {0: model}, None)] * 2)
    assert chosen_rounds(view, None) == (1, 2)
    with pytest.raises(InputError, match=r"rounds = \[\]: names no round.*in view: \[1, 2\]"):
        chosen_rounds(view, [])


def test_losses_are_cross_entropies_of_what_came_back(
    hand: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    import torch

    data, model, reply = hand.records(5, rng=rng), hand.weights(rng=rng), hand.weights(rng=rng)
    view = hand.view(tmp_path / "trace", [(model, {2: reply}, reply)])
    module = hand.spec.builder(trusted=False)()
    module.load_state_dict({k: torch.from_numpy(v) for k, v in reply.items()})
    expected = torch.nn.functional.cross_entropy(
        module(torch.from_numpy(data.inputs)), torch.from_numpy(data.labels), reduction="none"
    )
    for source, clients in (("clients", (2,)), ("sum", (SUM,))):
        ((number, found, values),) = losses(view, data, source=source)  # type: ignore[arg-type]
        assert (number, found) == (1, clients)
        np.testing.assert_allclose(values[0], expected.detach().numpy(), rtol=1e-4)


def test_clients_may_be_absent_fail_or_return_the_model_unchanged(
    hand: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    data, model = hand.records(4, rng=rng), hand.weights(rng=rng)
    moved = hand.step(model, hand.gradient(model, data, [1]))
    rounds = [(model, {0: moved, 1: None, 2: model}, None), (model, {1: moved}, None)]
    found = list(alignments(hand.view(tmp_path / "trace", rounds), data))
    assert [(a.round, a.clients) for a in found] == [(1, (0,)), (2, (1,))]


def test_the_sum_is_the_step_of_the_global_model(
    hand: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    data, model = hand.records(4, rng=rng), hand.weights(rng=rng)
    first, second = (hand.step(model, hand.gradient(model, data, [i])) for i in (0, 1))
    mean = {name: (first[name] + second[name]) / 2 for name in model}
    rounds = [(model, {0: first, 1: second}, mean)]
    blind = hand.view(tmp_path / "trace", rounds, PRESETS["secure-aggregation-server"])
    (found,) = alignments(blind, data, source="sum")
    assert found.clients == (SUM,)
    (each,) = alignments(hand.view(tmp_path / "again", rounds), data)
    np.testing.assert_allclose(found.dots[:, 0], each.dots.mean(axis=1), rtol=1e-3, atol=1e-6)
    with pytest.raises(ObservationError, match="client-updates"):
        list(alignments(blind, data))


def test_bad_input_is_refused(hand: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    data, model = hand.records(3, rng=rng), hand.weights(rng=rng)
    view = hand.view(tmp_path / "trace", [(model, {0: hand.weights(rng=rng)}, None)])
    with pytest.raises(InputError, match="no such parameter"):
        list(alignments(view, data, layers=["nope"]))
    with pytest.raises(InputError, match="names no parameter"):
        parameter_names(view.architecture(), [])
    with pytest.raises(InputError, match="rounds = 7"):
        list(alignments(view, data, rounds=[7]))
    wide = Records(np.arange(2), np.zeros((2, 9), np.float32), np.zeros(2, np.int64))
    with pytest.raises(InputError, match="refuses inputs of this shape"):
        list(losses(view, wide))
    other = Records(data.ids, data.inputs, data.labels + 3)
    with pytest.raises(InputError, match="the model has 3 outputs"):
        list(losses(view, other))
    with pytest.raises(InputError, match="the model has 3 outputs"):
        list(alignments(view, other))

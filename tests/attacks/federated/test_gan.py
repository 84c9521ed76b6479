"""The GAN attack's arithmetic, on a model small enough to know what it should draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from attacks.federated.client_behaviours import HitajGan, Means, Turn
from attacks.federated.gan import generate, new_generator, roughness, train_generator
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from fl_audit.records import Records

SEED = 20_261_125
SHAPE = (1, 4, 4)


def module() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def template() -> Arrays:
    """A linear model whose class 1 is the upper half lit and the lower half dark."""
    weight = np.zeros((3, 16), dtype=np.float32)
    weight[1, :8], weight[1, 8:] = 0.5, -0.5
    return {"1.weight": weight, "1.bias": np.zeros(3, dtype=np.float32)}


def torch_generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def drawn(steps: int = 200, victim_class: int = 1) -> np.ndarray:
    generator = torch_generator()
    net = new_generator(SHAPE, noise=4, hidden=16, generator=generator)
    train_generator(
        net,
        module(),
        template(),
        victim_class=victim_class,
        steps=steps,
        batch=16,
        rate=0.02,
        smoothness=0.0,
        generator=generator,
    )
    return generate(net, 5, generator=generator)


def test_it_draws_what_the_model_takes_for_the_class() -> None:
    pictures = drawn()
    assert pictures.shape == (5, *SHAPE)
    assert pictures.dtype == np.float32
    assert pictures[:, :, :2].mean() > 0.8
    assert pictures[:, :, 2:].mean() < 0.2


def test_the_same_generator_draws_the_same_bytes_and_global_draws_stay_untouched() -> None:
    state = torch.random.get_rng_state()
    np.testing.assert_array_equal(drawn(20), drawn(20))
    assert torch.equal(state, torch.random.get_rng_state())


def test_roughness_counts_neighbours() -> None:
    assert float(roughness(torch.ones(2, 1, 3, 3))) == 0
    stripes = torch.tensor([[0.0, 1.0, 0.0, 1.0]])  # vectors: one axis
    assert float(roughness(stripes)) == 1


def test_a_class_or_a_shape_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="3 outputs"):
        drawn(1, victim_class=3)
    net = new_generator((1, 5, 5), noise=2, hidden=4, generator=torch_generator())
    with pytest.raises(InputError, match="refuses inputs"):
        train_generator(
            net,
            module(),
            template(),
            victim_class=1,
            steps=1,
            batch=2,
            rate=0.1,
            smoothness=0.0,
            generator=torch_generator(),
        )


def means(labels: list[int], extras: list[Records]) -> Means:
    own = Records(
        np.arange(len(labels)), np.zeros((len(labels), *SHAPE), np.float32), np.array(labels)
    )

    def retrain(before: Arrays, extra: Records, server_round: int) -> Arrays:
        extras.append(extra)
        return before

    return Means(model=module, targets=own, own=own, num_classes=3, retrain=retrain)


def turn(memory: dict[str, np.ndarray], server_round: int = 1) -> Turn:
    rng = np.random.default_rng([SEED, server_round])
    return Turn(server_round, template(), template(), rng, memory)  # type: ignore[arg-type]


def test_drawings_are_planted_under_a_class_of_its_own() -> None:
    extras: list[Records] = []
    behaviour = HitajGan(planted=7, steps=3)
    behaviour.forge(turn({}), means([2, 2], extras))
    assert behaviour.classes(means([2, 2], []).own, 3) == (0, 2)
    assert extras[0].labels.tolist() == [2] * 7
    assert extras[0].input_shape == SHAPE


def test_the_generator_is_remembered_from_round_to_round() -> None:
    memory: dict[str, np.ndarray] = {}
    behaviour = HitajGan(steps=3)
    behaviour.forge(turn(memory), means([0], []))
    first = {name: array.copy() for name, array in memory.items()}
    behaviour.forge(turn(memory, 2), means([0], []))
    assert first.keys() == memory.keys()
    assert any((first[name] != memory[name]).any() for name in first)
    # it went on from there: in the same round without memory, another generator comes out
    fresh: dict[str, np.ndarray] = {}
    behaviour.forge(turn(fresh, 2), means([0], []))
    assert any((fresh[name] != memory[name]).any() for name in fresh)


def test_a_watcher_sends_its_honest_model() -> None:
    now = turn({})
    assert HitajGan(planted=0, steps=1).forge(now, means([0], [])) is now.after


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"victim_class": 1}, [0, 1], "must not own it"),
        ({}, [0, 1, 2], "must not own it"),
        ({"victim_class": 9}, [0], "no such class: the model has 3"),
        ({"victim_class": 1, "label": 1}, [0], "adversary.label"),
        ({"label": 5}, [0], "adversary.label"),
    ],
)
def test_classes_that_make_no_attack_are_refused(
    settings: dict[str, int], labels: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        HitajGan(**settings).check(means(labels, []))  # type: ignore[arg-type]

"""Inversion as a whole: exact where a gradient tells all, honest where it does not."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from attacks.reconstruction.optimisation.engine import Sight, invert_gradients
from attacks.reconstruction.optimisation.plan import LocalPlan
from attacks.reconstruction.optimisation.presets import preset
from attacks.reconstruction.optimisation.result import Inversion
from attacks.reconstruction.optimisation.simulation import LocalSteps
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining
from simulations.models import lenet_zhu, mlp
from tests.attacks.reconstruction.optimisation import nets

TRUTH = nets.batch(1, 12)
LABEL = torch.tensor([2])


def invert(model: torch.nn.Module, seen: Any, *, seed: int = 77, **given: Any) -> Inversion:
    given.setdefault("input_shape", (12,))
    given.setdefault("config", preset("second_order", iterations=150))
    return invert_gradients(model, seen, generator=nets.generator(seed), **given)


def decibels(found: Inversion, truth: torch.Tensor) -> float:
    error = float(np.mean((found.inputs - truth.numpy()) ** 2))
    return float(-10 * np.log10(max(error, 1e-30)))


@pytest.fixture(scope="module")
def exact() -> Inversion:
    """One input of a small net, its label known."""
    model = nets.dense()
    return invert(model, nets.gradient(model, TRUTH, LABEL), labels=LABEL)


def test_one_input_comes_back_exactly(exact: Inversion) -> None:
    assert decibels(exact, TRUTH) > 200
    assert exact.objective < 1e-25
    assert exact.labels.tolist() == [2]
    assert exact.inputs.dtype == np.float64
    assert exact.history.shape[1] == 1
    assert exact.history[-1, 0] == pytest.approx(exact.objective, abs=1e-28)
    assert exact.evaluations >= len(exact.history)
    assert any("Levenberg-Marquardt" in note for note in exact.notes)


def test_two_pictures_of_lenet_come_back() -> None:
    model = nets.drawn(lenet_zhu(input_shape=(1, 8, 8), num_classes=4), 0.3)
    truth, labels = nets.batch(2, 1, 8, 8), torch.tensor([0, 3])
    seen = {name: g.numpy() for name, g in nets.gradient(model, truth, labels).items()}
    found = invert(model, seen, input_shape=(1, 8, 8), labels=labels.numpy())
    assert decibels(found, truth) > 100


def test_the_label_is_found_where_it_is_not_known() -> None:
    model = nets.dense()
    seen = nets.gradient(model, TRUTH, LABEL)
    inferred = invert(model, seen, batch_size=1)
    joint = invert(model, seen, batch_size=1, config=preset("dlg", iterations=200, refine=12))
    for found in (inferred, joint):
        assert found.labels.tolist() == [2]
        assert decibels(found, TRUTH) > 100


def test_a_wrong_label_leaves_the_gradient_unmatched() -> None:
    """Nothing to find: the objective says so, without the truth."""
    model = nets.dense()
    found = invert(model, nets.gradient(model, TRUTH, LABEL), labels=[0])
    assert found.objective > 1e-4


def test_a_gradient_of_noise_is_not_matched() -> None:
    model, stream = nets.dense(), nets.generator(4)
    seen = {
        name: torch.randn(p.shape, generator=stream, dtype=torch.float64)
        for name, p in model.named_parameters()
    }
    found = invert(model, seen, labels=LABEL)
    assert found.objective > 0.2


@pytest.mark.parametrize("objective", ["cosine", "euclidean"])
def test_history_goes_on_through_refinement_in_the_column_of_the_best(objective: str) -> None:
    """A wrong label, so that the objective ends well above 0."""
    model = nets.dense()
    config = preset("second_order", objective=objective, iterations=4, restarts=4, refine=3)
    seen = nets.gradient(model, TRUTH, LABEL)
    finds = [invert(model, seen, labels=[0], config=config, seed=seed) for seed in (1, 2, 3)]
    assert len({found.best for found in finds}) > 1
    for found in finds:
        assert found.history[-1, found.best] == pytest.approx(found.objective, rel=1e-9)
        assert np.isnan(np.delete(found.history[-1], found.best)).all()
        assert found.objective < found.restart_objectives[0]


@pytest.mark.parametrize("name", ["inverting_gradients", "second_order"])
def test_one_seed_gives_the_same_bytes_and_leaves_all_else_alone(name: str) -> None:
    model = nets.dense()
    seen = nets.gradient(model, TRUTH, LABEL)
    before = copy.deepcopy((model.state_dict(), seen))
    state, training = torch.get_rng_state(), model.training
    config = preset(name, iterations=15, restarts=2, total_variation=0.0)
    first, again = (invert(model, seen, labels=LABEL, config=config) for _ in range(2))
    other = invert(model, seen, labels=LABEL, config=config, seed=1)
    assert first.inputs.tobytes() == again.inputs.tobytes()
    assert first.history.tobytes() == again.history.tobytes()
    assert first.inputs.tobytes() != other.inputs.tobytes()
    after = (model.state_dict(), seen)
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training == training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_restarts_are_ranked_by_the_attackers_objective() -> None:
    model = nets.dense()
    config = preset("inverting_gradients", total_variation=0.0, iterations=40, restarts=4, frames=5)
    found = invert(model, nets.gradient(model, TRUTH, LABEL), labels=LABEL, config=config)
    assert (np.diff(found.restart_objectives) >= 0).all()
    assert found.restarts.shape == (4, 1, 12)
    np.testing.assert_array_equal(found.restarts[0], found.inputs)
    assert found.restart_objectives[0] == pytest.approx(found.history[:, found.best].min())
    assert found.objective == found.restart_objectives[0]
    assert found.frames.shape == (5, 1, 12)
    assert found.evaluations == 4 * len(found.history) == 160


def test_the_objective_is_that_at_the_inputs_penalties_in_it() -> None:
    """Refinement leaves penalties out: what it ends at is still reported with them."""
    model = nets.dense()
    config = preset("second_order", iterations=100, norm=0.01)
    found = invert(model, nets.gradient(model, TRUTH, LABEL), labels=LABEL, config=config)
    assert decibels(found, TRUTH) > 100
    assert found.objective == pytest.approx(0.01 * float(TRUTH.square().mean()), rel=1e-6)


def test_bounds_by_channel_hold() -> None:
    model = nets.convolutional()
    model[0] = nets.drawn(torch.nn.Conv2d(2, 4, 3, padding=1))  # type: ignore[index]
    low, high = [0.0, -3.0], [1.0, -2.0]
    truth = nets.batch(1, 2, 6, 6) + torch.tensor([0.0, -3.0]).view(2, 1, 1)
    seen = nets.gradient(model, truth, LABEL - 1)
    config = preset("inverting_gradients", iterations=30, bounds=(low, high))
    found = invert(model, seen, labels=LABEL - 1, config=config, input_shape=(2, 6, 6))
    for channel in (0, 1):
        assert found.inputs[:, channel].min() >= low[channel]
        assert found.inputs[:, channel].max() <= high[channel]
    assert found.inputs[:, 1].mean() == pytest.approx(-2.5, abs=0.3)


def batch_norm_net() -> torch.nn.Module:
    """In training mode: the gradient depends on the batch's own statistics."""
    layers = [torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.Tanh()]
    return nets.drawn(torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(96, 3)))


def test_batch_norm_statistics_give_away_the_scale_and_the_model_is_left_alone() -> None:
    """BatchNorm hides the inputs' level and contrast; how the client's buffers moved tells them."""
    model, truth, labels = batch_norm_net().train(), nets.batch(2, 1, 4, 4), torch.tensor([0, 1])
    moved = copy.deepcopy(model)
    seen = nets.gradient(moved, truth, labels)
    before = dict(model.named_buffers())
    change = {n: (b - before[n]).double().numpy() for n, b in moved.named_buffers()}
    state = copy.deepcopy(model.state_dict())
    found = {}
    for weight, statistics in ((0.0, "none"), (0.01, "inferred")):
        config = preset(
            "second_order",
            iterations=200,
            batch_norm=weight,
            statistics=statistics,
            bounds=None,
        )
        found[statistics] = invert(
            model, {**seen, **change}, labels=labels, config=config, input_shape=(1, 4, 4)
        )
    assert decibels(found["inferred"], truth) > 150
    assert found["inferred"].objective < 1e-20
    assert decibels(found["none"], truth) < 0
    assert all(torch.equal(state[key], model.state_dict()[key]) for key in state)


def test_statistics_that_cannot_be_had_are_refused() -> None:
    model, labels = nets.normalised().train(), torch.tensor([0, 1, 1])
    seen = nets.gradient(copy.deepcopy(model), nets.batch(3, 1, 4, 4), labels)
    given = {"labels": labels, "input_shape": (1, 4, 4)}

    def config(statistics: str) -> Any:
        return preset("second_order", batch_norm=0.01, statistics=statistics)

    with pytest.raises(InputError, match="does not have it"):
        invert(model, seen, config=config("inferred"), **given)
    with pytest.raises(InputError, match="needs inputs like the client's"):
        invert(model, seen, config=config("proxy"), **given)
    plan = LocalPlan(LocalTraining(batch_size=2), 0.1, 3)
    with pytest.raises(InputError, match="moved in 4 steps"):
        invert(model, seen, config=config("inferred"), plan=plan, **given)


def test_what_plays_no_part_is_noted() -> None:
    model = torch.nn.Sequential(*nets.dense(), torch.nn.Dropout(0.4)).train()
    seen = nets.gradient(copy.deepcopy(model).eval(), TRUTH, LABEL)
    config = preset("second_order", iterations=100, batch_norm=0.1, statistics="running")
    found = invert(model, seen, labels=LABEL, config=config)
    assert any("searched without dropout" in note for note in found.notes)
    assert any("no BatchNorm" in note for note in found.notes)
    assert decibels(found, TRUTH) > 100
    assert model[-1].training


def test_settings_of_adam_and_statistics_that_play_no_part_are_noted() -> None:
    model = nets.dense()
    seen = nets.gradient(model, TRUTH, LABEL)

    def noted(**changes: Any) -> str:
        config = preset("second_order", iterations=3, refine=0, **changes)
        return " ".join(invert(model, seen, labels=LABEL, config=config).notes)

    assert "no part" not in noted()
    idle = noted(warmup=5, signed="no", statistics="running")
    assert "signed, warmup (Adam's) played no part" in idle
    assert 'batch_norm is 0: statistics = "running" plays no part' in idle
    assert "learning_rate (Adam's)" in noted(optimiser="auto", learning_rate=0.3)
    assert "no part" not in noted(optimiser="adam", warmup=5)


def test_the_mode_of_batch_norm_is_noted() -> None:
    labels = torch.tensor([0, 1, 1])
    for training in (True, False):
        model = nets.normalised().train(training)
        seen = nets.gradient(copy.deepcopy(model), nets.batch(3, 1, 4, 4), labels)
        config = preset("second_order", iterations=2, refine=0)
        found = invert(model, seen, labels=labels, config=config, input_shape=(1, 4, 4))
        notes = " ".join(found.notes)
        assert ("the searched batch's own statistics were used" in notes) == training
        assert ("the model's running statistics were used" in notes) == (not training)


def test_refinement_that_is_cut_short_is_noted() -> None:
    model = nets.dense()
    seen = nets.gradient(model, TRUTH, LABEL)
    notes = {}
    for most in (20, 40_000):
        config = preset("second_order", iterations=3, refine_evaluations=most)
        notes[most] = " ".join(invert(model, seen, labels=[0], config=config).notes)
    assert "1 steps with the Jacobian formed" in notes[20]
    assert "cut short: the next step needs more than refine_evaluations = 20" in notes[20]
    assert "cut short" not in notes[40_000]


def test_the_search_fits_the_model() -> None:
    smooth = nets.dense()
    bent = nets.drawn(mlp(input_shape=(12,), num_classes=3, hidden=(8,)))
    for model, word in ((smooth, "L-BFGS"), (bent, "relu")):
        config = preset("fedavg_multi_step", total_variation=0.0, iterations=3)
        found = invert(model, nets.gradient(model, TRUTH, LABEL), labels=LABEL, config=config)
        assert any(word in note for note in found.notes)


def test_local_steps_are_unrolled_and_epochs_merged() -> None:
    training = LocalTraining(local_epochs=2, batch_size=1, learning_rate=0.5)
    model, plan = nets.dense(), LocalPlan(training, 0.5, 2, epoch_prior=0.01)
    truth, labels = nets.batch(2, 12), torch.tensor([0, 2])
    names = tuple(name for name, _ in model.named_parameters())
    steps = LocalSteps(model, names, training, 0.5, plan.batches())
    sent = [g.detach() for g in steps(truth.repeat(2, 1), plan.spread(labels))]
    seen = dict(zip(names, sent, strict=True))
    found = invert(model, seen, labels=labels, plan=plan)
    naive = invert(model, seen, labels=labels)
    assert found.inputs.shape == (2, 12)
    assert found.labels.tolist() == [0, 2]
    assert decibels(found, truth) > 200
    assert decibels(naive, truth) < 40
    assert naive.objective > 1e-4  # read as one gradient, nothing explains the update


def test_more_updates_of_the_same_data_are_joined() -> None:
    """24 unknowns: the first model's gradient has 19 numbers, and the second's 35."""
    models = [nets.dense(1), nets.dense(2)]
    truth, labels = nets.batch(2, 12), torch.tensor([0, 1])
    seen = [nets.gradient(model, truth, labels) for model in models]
    one = invert(models[0], seen[0], labels=labels)
    both = invert(models[0], seen[0], labels=labels, more=[Sight(models[1], seen[1])])
    assert decibels(one, truth) < 30
    assert decibels(both, truth) > 200
    with pytest.raises(InputError, match=r"0\.weight"):
        invert(models[0], seen[0], labels=labels, more=[Sight(models[1], seen[0])])


def test_what_is_searched_is_decoded_for_the_model_and_for_the_report() -> None:
    model = nets.dense()
    config = preset("second_order", iterations=150, bounds=None, box=False)
    seen = nets.gradient(model, TRUTH, LABEL)
    found = invert(model, seen, labels=LABEL, config=config, decode=torch.sigmoid)
    assert decibels(found, TRUTH) > 100
    assert found.inputs.min() >= 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [3]}, "0 to 2"),
        ({"labels": [0, 1], "batch_size": 3}, "holds 3 inputs"),
        ({"labels": ["a", "b"]}, "labels = .*whole numbers"),
        ({"labels": [True]}, "labels = .*whole numbers, not bool"),
        ({"labels": torch.tensor([1.0])}, "labels = .*whole numbers"),
        ({"batch_size": 1.5}, "batch_size = 1.5"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"labels": [2], "input_shape": (13,)}, "refuses 1 inputs"),
        ({"labels": [2], "proxies": np.ones((4, 11))}, "proxies"),
        ({"labels": [2], "config": preset("inverting_gradients")}, "no pictures"),
        ({"config": preset("second_order", labels="known")}, "none are given"),
        ({"labels": [2], "config": preset("dlg", drop_layers=["9.weight"])}, "no such parameter"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    model = nets.dense()
    with pytest.raises(InputError, match=message):
        invert(model, nets.gradient(model, TRUTH, LABEL), **given)


def test_gradients_that_do_not_fit_are_refused() -> None:
    model = nets.dense()
    seen = nets.gradient(model, TRUTH, LABEL)
    with pytest.raises(InputError, match=r"gradient of '0\.weight'"):
        invert(nets.dense(9), seen, labels=LABEL)
    with pytest.raises(InputError, match=r"gradient of '2\.bias'.*finite"):
        invert(model, {**seen, "2.bias": torch.full((3,), torch.nan)}, labels=LABEL)
    with pytest.raises(InputError, match="nothing is left to match"):
        invert(model, {name: value * 0 for name, value in seen.items()}, labels=LABEL)


def test_a_model_that_overflows_is_told() -> None:
    model = nets.dense()
    seen = nets.gradient(model, TRUTH, LABEL)
    with torch.no_grad():
        model[2].bias[0] = torch.nan  # type: ignore[index]
    with pytest.raises(InputError, match="not finite at any start"):
        invert(model, seen, labels=LABEL)

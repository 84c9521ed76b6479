"""Fishing by the last layer alone, and the search of what it let through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attacks.audit import audit_run
from attacks.federated.server_behaviours import ServerMeans, ServerTurn
from attacks.reconstruction.fishing import ATTACK
from attacks.reconstruction.fishing_layer import (
    Passing,
    caught_gradient,
    fish_last_layer,
    last_names,
    passes_layer,
    passing_share,
    read_layer_cut,
)
from attacks.reconstruction.fishing_search import land
from attacks.reconstruction.observed import Observed
from attacks.reconstruction.server_behaviours import Fishing
from fl_audit.attack_spec import AttackInput
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from fl_audit.game import read_truth
from fl_audit.local_training import LocalTraining
from fl_audit.records import Records
from fl_audit.results import ReconstructionResult
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Trace, TraceView
from simulations.data.builtin import digits
from simulations.models import convnet, lenet_zhu, mlp, transformer

SEED = 20_261_125
RATE = 0.1
FEW, MANY = 8, 32  # batches where the class cut alone is best, and where a feature cut is
SHAPE = (1, 8, 8)
NETS: dict[str, Callable[..., nn.Module]] = {
    "lenet_zhu": lenet_zhu,
    "convnet": convnet,
    "mlp": lambda **given: mlp(**given, hidden=[32, 24]),
}


def _net(name: str = "lenet_zhu", **settings: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETS[name](input_shape=SHAPE, num_classes=10, **settings)


def _arrays(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in net.state_dict().items()}


def _split() -> tuple[Records, Records]:
    """The server's own 600 digits, and 1,197 others."""
    records = digits().records
    rows = np.random.default_rng(SEED).permutation(len(records))
    return records.take(rows[:600]), records.take(rows[600:])


def _update(net: nn.Module, sent: Arrays, batch: Records) -> dict[str, np.ndarray]:
    """What a FedSGD client's parameters change by, in float32."""
    net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in sent.items()})
    net.zero_grad()
    logits = net(torch.from_numpy(np.asarray(batch.inputs)))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels))
    loss.backward()  # type: ignore[no-untyped-call]
    steps = {n: np.float32(RATE) * p.grad.numpy() for n, p in net.named_parameters()}  # type: ignore[union-attr]
    return {
        n: (np.asarray(sent[n], np.float32) - step).astype(np.float64)
        - np.asarray(sent[n], np.float64)
        for n, step in steps.items()
    }


def _given(view: TraceView, proxy: Records, **settings: Any) -> AttackInput:
    chosen = ATTACK.settings(**settings)
    return AttackInput(view, chosen, np.random.default_rng(SEED), auxiliary=proxy)


def _view(run: Path) -> TraceView:
    return TraceView(Trace.open(run / "trace"), PRESETS["malicious-server"])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [FEW, MANY])
def test_what_is_left_of_a_batch_is_the_gradient_of_the_record_that_passed(
    name: str, size: int
) -> None:
    """By autograd: the batch's update over the record's alone is 1 / B, below the last layer and,
    freed of the other records, in it. The count is that of the records that passed."""
    proxy, others = _split()
    net, rng, seen = _net(name), np.random.default_rng(SEED), set()
    for label in (1, 4, 7):
        sent = fish_last_layer(net, _arrays(_net(name)), proxy, label, batch=size)
        names = last_names(net)
        assert read_layer_cut(sent, names) == label
        passed = passes_layer(net, sent, names, others)
        for _ in range(6):
            rows = rng.choice(len(others), size, replace=False)
            batch, which = others.take(rows), passed[rows]
            update = {n: -u / RATE for n, u in _update(net, sent, batch).items()}
            caught = caught_gradient(net, sent, update, label)
            own = which & (batch.labels == label)
            net_count = int(own.sum()) - int((which & ~own).sum())
            assert caught.passed * size == pytest.approx(net_count, abs=0.05)
            assert caught.is_empty == (not which.any())
            seen.add((int(own.sum()), int((which & ~own).sum())))
            if own.sum() != 1 or which.sum() != 1:
                continue
            alone = _update(net, sent, batch.take(np.flatnonzero(which)))
            for each in set(alone) - set(names):
                one = -alone[each] / RATE / size
                rounding = 1e-7 * np.linalg.norm(sent[each]) / RATE  # of weights, in the update
                off = np.linalg.norm(update[each] - one)
                assert off < 1e-4 * np.linalg.norm(one) + rounding
            _assert_same_at_the_search_s_model(caught, batch.take(np.flatnonzero(which)))
    assert {(0, 0), (1, 0)} <= seen
    assert any(own > 1 for own, _ in seen)


def _assert_same_at_the_search_s_model(caught: Any, record: Records) -> None:
    """Cosine 1 with the record's own gradient there, the last layer among it."""
    model = caught.model.double()
    inputs = torch.from_numpy(np.asarray(record.inputs)).double()
    loss = nn.functional.cross_entropy(model(inputs), torch.from_numpy(record.labels))
    own = torch.autograd.grad(loss, list(model.parameters()))
    flat = np.concatenate([g.numpy().ravel() for g in own])
    found = np.concatenate([caught.gradients[n].ravel() for n, _ in model.named_parameters()])
    assert found @ flat / np.linalg.norm(found) / np.linalg.norm(flat) > 1 - 1e-7


def test_a_record_of_another_class_that_passes_counts_the_other_way() -> None:
    proxy, others = _split()
    net = _net()
    sent = fish_last_layer(net, _arrays(_net()), proxy, 1, batch=MANY)
    passed = passes_layer(net, sent, last_names(net), others)
    (row, *_) = np.flatnonzero(passed & (others.labels != 1))
    quiet = np.flatnonzero(~passed)[:3]
    update = _update(net, sent, others.take(np.array([row, *quiet])))
    caught = caught_gradient(net, sent, {n: -u / RATE for n, u in update.items()}, 1)
    assert caught.passed * 4 == pytest.approx(-1, abs=0.05)
    assert not caught.is_empty


def test_the_feature_cut_leaves_one_record_more_often_than_the_class_cut() -> None:
    """Chances on 1,197 fresh digits, mean of ten classes: the class cut has 0.12 in theory."""
    proxy, others = _split()
    chances, known = [], []
    for label in range(10):
        net = _net()
        sent = fish_last_layer(net, _arrays(net), proxy, label, batch=MANY)
        passed, own = passes_layer(net, sent, last_names(net), others), others.labels == label
        share = Passing(float((passed & own).mean()), float((passed & ~own).mean()))
        chances.append(share.alone(MANY))
        expected = passing_share(net, sent, label, proxy)
        assert expected is not None
        known.append(expected.alone(MANY))
    assert np.mean(chances) > 2 * Passing(0.1, 0.0).alone(MANY)
    assert np.mean(known) == pytest.approx(np.mean(chances), abs=0.1)  # chosen on these: higher


def test_the_chance_of_one_record_is_that_of_all_batches_enumerated() -> None:
    share = Passing(own=0.2, others=0.1)
    kinds = {"own": 0.2, "other": 0.1, "none": 0.7}
    total = sum(
        np.prod([kinds[kind] for kind in batch])
        for batch in product(kinds, repeat=4)
        if batch.count("own") == 1 and batch.count("other") == 0
    )
    assert share.alone(4) == pytest.approx(total)


@pytest.fixture(scope="module")
def lenet_run(run_tables: Callable[..., Path]) -> Path:
    """Eight batches of six digits, fished from a small convolutional net."""
    return run_tables(
        "fishing-lenet",
        federation={"clients": 4, "rounds": 2},
        game={"members": 60, "auxiliary": 300},
        model={"name": "lenet_zhu"},
        threat_model={"preset": "malicious-server"},
        adversary={"name": "fishing", "batch": 6},
        training={"algorithm": "fedsgd", "batch_size": 6},
    )


def _audited(run: Path, **settings: Any) -> ReconstructionResult:
    quick = {"name": "fishing", "iterations": 150, **settings}
    (result,) = audit_run(run, attacks=[quick], trust_model=True)
    assert isinstance(result, ReconstructionResult), result.record
    return result


def test_single_records_of_batches_come_back_from_real_flower_rounds(lenet_run: Path) -> None:
    """Claims are about exactly those batches with one record of the class, and each is right."""
    result = _audited(lenet_run)
    targets = read_truth(RunDirectory.open(lenet_run)).targets
    alone = set()
    for number, label in ((1, 0), (2, 1)):  # classes take turns
        for client in range(4):
            target = targets.find(number, client)
            assert target is not None
            if (target.labels == label).sum() == 1:
                alone.add(f"round_{number:04d}/client_{client}/labels")
    claimed = {key for key in result.arrays if key.endswith("/labels")}
    assert len(alone) >= 2
    assert claimed == alone
    record = result.record
    assert record.metrics["psnr_db"].value > 60  # rounding of float32 is the only limit
    assert record.beats_guess("psnr_db")
    assert record.metrics["recovered"].value == pytest.approx(len(alone) / (8 * 6))  # of all tried
    notes = " ".join(record.notes)
    assert f", and {len(alone)} one." in notes
    assert "exactly one passes with probability 0." in notes
    assert "elsewhere an average" not in notes  # the batch and the learning rate are known


def test_settings_bound_what_is_searched_and_claimed(lenet_run: Path) -> None:
    few = _audited(lenet_run, most_searches=1)
    assert few.record.num_targets == 1
    assert "were not searched: raise most_searches" in " ".join(few.record.notes)
    strict = _audited(lenet_run, iterations=3, most_searches=1, preset="inverting_gradients")
    assert strict.record.num_targets == 0
    assert "1 searches ended without a claim" in " ".join(strict.record.notes)
    again = _audited(lenet_run, most_searches=1)
    assert all(few.arrays[key].tobytes() == again.arrays[key].tobytes() for key in few.arrays)


def test_an_honest_federation_is_refused(inversion_run: Path) -> None:
    with pytest.raises(InputError, match="no client received a planted model"):
        ATTACK.run(_given(_view(inversion_run), _split()[0]))


def test_a_gradient_of_nothing_gives_no_claim(inversion_run: Path) -> None:
    """Null: noise of the right shapes; of four searches the attacker believes none."""
    proxy, _ = _split()
    net = _net()
    sent = fish_last_layer(net, _arrays(net), proxy, 3, batch=FEW)
    rng = np.random.default_rng(SEED)
    given = _given(_view(inversion_run), proxy, iterations=40)
    for _ in range(4):
        noise = {name: rng.normal(size=value.shape) for name, value in sent.items()}
        catch = land(given, Observed(1, 0, (0,), sent, noise, None, None), net, may_search=True)
        assert catch is not None
        assert (catch.fate, catch.claim, catch.is_counted) == ("unsolved", None, False)


def test_what_is_known_of_local_training_decides(inversion_run: Path) -> None:
    """Unknown: a claim, and no count. Several steps, several records: none. Weight decay: taken
    out."""
    proxy, others = _split()
    net = _net()
    sent = fish_last_layer(net, _arrays(net), proxy, 3, batch=FEW)
    own, rest = np.flatnonzero(others.labels == 3), np.flatnonzero(others.labels != 3)
    batch = others.take(np.array([own[0], *rest[: FEW - 1]]))
    update = _update(net, sent, batch)
    local = LocalTraining(algorithm="fedsgd", learning_rate=RATE, weight_decay=0.01)
    decayed = {n: u - RATE * 0.01 * np.asarray(sent[n], np.float64) for n, u in update.items()}
    pair = _update(net, sent, others.take(np.array([*own[:2], *rest[: FEW - 2]])))
    plain = LocalTraining(algorithm="fedsgd", learning_rate=RATE)
    several = LocalTraining(local_epochs=2, batch_size=FEW)
    given = _given(_view(inversion_run), proxy, iterations=100)
    cases = [
        (update, None, None, "one", False),
        (decayed, local, FEW, "one", True),
        (pair, plain, FEW, "mixed", True),
        (update, several, FEW, "steps", False),
    ]
    for moved, known, examples, fate, is_counted in cases:
        seen = Observed(1, 0, (0,), sent, moved, known, examples)
        catch = land(given, seen, net, may_search=True)
        assert catch is not None
        assert (catch.fate, catch.is_counted) == (fate, is_counted)
        if catch.claim is not None:
            assert catch.claim.inputs is not None
            np.testing.assert_allclose(catch.claim.inputs[0], batch.inputs[0], atol=0.01)
    without = replace(given, auxiliary=None)
    with pytest.raises(InputError, match="auxiliary"):
        land(without, Observed(1, 0, (0,), sent, update, None, None), net, may_search=True)


def test_honest_models_are_no_fishing_models() -> None:
    net = _net()
    assert read_layer_cut(_arrays(net), last_names(net)) is None


def test_the_server_s_behaviour_fishes_for_classes_in_turn() -> None:
    proxy, _ = _split()
    means = ServerMeans(model=_net, targets=proxy.take([]), asked=None, auxiliary=proxy)
    names = last_names(_net())
    for number, label in ((1, 0), (2, 1), (11, 0)):
        turn = ServerTurn(number, 0, _arrays(_net()), None, 0)
        assert read_layer_cut(Fishing().send(turn, means), names) == label


class _NoDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(1, 10, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(inputs)
        return logits.flatten(1)


@pytest.mark.parametrize(
    ("net", "label", "message"),
    [
        (_net(), 10, "classes 0 to 9"),
        (_net(), 9, "0 of .* auxiliary records have it"),
        (_NoDense(), 0, "not that of a dense layer"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0, "no dense layer behind another"),
        (nn.Sequential(_net(), nn.Linear(10, 10, bias=False)), 0, "needs a bias"),
        (_net("convnet", norm="batch"), 0, "none can be alone"),
        (transformer(input_shape=[8], num_classes=10, width=16, heads=2), 0, "tokens have no"),
    ],
)
def test_what_cannot_be_fished_is_refused(net: nn.Module, label: int, message: str) -> None:
    proxy, _ = _split()
    few = proxy.take(np.flatnonzero(proxy.labels < 9))
    with pytest.raises(InputError, match=message):
        fish_last_layer(net, _arrays(net), few, label, batch=FEW)

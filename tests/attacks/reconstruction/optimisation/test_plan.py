"""Local steps laid out: every record once an epoch, and epochs brought together again."""

from __future__ import annotations

import pytest
import torch

from attacks.reconstruction.optimisation.plan import LocalPlan
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining
from tests.attacks.reconstruction.optimisation import nets


def plan(**fields: object) -> LocalPlan:
    training = LocalTraining.model_validate({"local_epochs": 3, "batch_size": 4, **fields})
    return LocalPlan(training, 0.1, 10)


def test_every_record_is_used_once_an_epoch_in_batches_like_the_clients() -> None:
    batches = plan().batches()
    assert [len(rows) for rows in batches] == [4, 4, 2] * 3
    assert torch.cat(batches).tolist() == list(range(30))
    assert plan().steps == len(batches)


def test_one_step_uses_all_records() -> None:
    single = plan(algorithm="fedsgd")
    assert (single.epochs, single.steps) == (1, 1)
    assert [rows.tolist() for rows in single.batches()] == [list(range(10))]
    assert [len(rows) for rows in plan(batch_size=64, local_epochs=1).batches()] == [10]


def test_labels_are_the_same_in_every_epoch() -> None:
    labels = torch.arange(10) % 3
    assert plan().spread(labels).reshape(3, 10).tolist() == [labels.tolist()] * 3


def test_the_prior_is_zero_for_any_order_and_by_hand_otherwise() -> None:
    records = nets.batch(10, 1, 2, 2)
    stream = nets.generator(2)
    shuffled = torch.cat([records[torch.randperm(10, generator=stream)] for _ in range(3)])
    assert float(plan().prior(shuffled)) < 1e-30
    away = torch.cat([records, records, records + 3.0])  # means 0, 0, 3 away: variance 2
    assert float(plan().prior(away)) == pytest.approx(0.1 * 2)


def test_shuffled_copies_are_paired_by_label_and_averaged() -> None:
    records, labels = nets.batch(10, 1, 2, 2), torch.arange(10) % 2
    stream, copies, kinds = nets.generator(2), [], []
    for step in range(3):
        order = torch.randperm(10, generator=stream) if step else torch.arange(10)
        copies.append(records[order] + 0.001 * step)
        kinds.append(labels[order])
    found, classes = plan().merge(torch.cat(copies), torch.cat(kinds))
    torch.testing.assert_close(found, records + 0.001)
    assert classes.tolist() == labels.tolist()


def test_labels_come_before_likeness() -> None:
    """Each epoch-1 input is nearest to the epoch-0 input of the other class."""
    training = LocalTraining(local_epochs=2)
    searched = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    found, classes = LocalPlan(training, 0.1, 2).merge(searched, torch.tensor([0, 1, 0, 1]))
    assert found.tolist() == [[0.5], [0.5]]
    assert classes.tolist() == [0, 1]


def test_one_epoch_is_left_as_it_is() -> None:
    inputs, labels = nets.batch(10, 3), torch.arange(10)
    found, classes = plan(local_epochs=1).merge(inputs, labels)
    assert found is inputs
    assert classes is labels


@pytest.mark.parametrize(("rate", "size"), [(0.0, 3), (0.1, 0), (float("nan"), 3)])
def test_impossible_plans_are_refused(rate: float, size: int) -> None:
    with pytest.raises(InputError, match="at least one example"):
        LocalPlan(LocalTraining(), rate, size)

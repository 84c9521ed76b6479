"""What clients trained on: written once a client, read when asked for, older layout included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_audit.errors import TraceError
from fl_audit.files import write_arrays
from fl_audit.targets import ClientTargets, Target, Targets, targets_of, write_targets

RNG = np.random.default_rng(20_261_125)


def client(number: int, used: list[list[bool]]) -> ClientTargets:
    flags = np.array(used)
    inputs = RNG.random((flags.shape[1], 2, 3)).astype(np.float32)
    return ClientTargets(number, inputs, np.arange(flags.shape[1]) + 10 * number, flags)


A = client(0, [[True, False, True], [False, False, False], [True, True, True]])
B = client(12, [[False, True], [True, True], [True, False]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_targets(tmp_path / "targets", iter([A, B]))
    return tmp_path / "targets"


def test_each_round_has_the_records_that_were_used(folder: Path) -> None:
    targets = Targets(folder=folder)
    for own in (A, B):
        for number in (1, 2, 3):
            found = targets.find(number, own.client)
            assert found is not None
            used = own.used[number - 1]
            np.testing.assert_array_equal(found.inputs, own.inputs[used])
            np.testing.assert_array_equal(found.labels, own.labels[used])
    seen = [(t.client, t.round, len(t.labels)) for t in targets]
    assert seen == [(0, 1, 2), (0, 3, 3), (12, 1, 1), (12, 2, 2), (12, 3, 1)]


def test_records_are_written_once_and_shared_between_rounds(tmp_path: Path) -> None:
    flags = np.ones((20, 40), dtype=np.bool_)
    own = ClientTargets(0, np.zeros((40, 64), dtype=np.float32), np.zeros(40, np.int64), flags)
    write_targets(tmp_path, [own])
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 40 * 64 * 4 + 20 * 40 + 40 * 8 + 500  # records, one flag a round, labels, header
    targets = Targets(folder=tmp_path)
    first, last = targets.find(1, 0), targets.find(20, 0)
    assert first is not None
    assert last is not None
    assert np.shares_memory(first.inputs, last.inputs)


def test_nothing_is_read_before_it_is_asked_for(folder: Path) -> None:
    """A membership attack on a thousand clients must not load what they trained on."""
    (folder / "client_0.safetensors").write_bytes(b"")
    targets = Targets(folder=folder)  # does not fall over the damaged file
    assert targets
    assert targets.find(1, 12) is not None
    with pytest.raises(TraceError, match=r"targets/client_0.safetensors.*damaged"):
        targets.find(1, 0)


def test_one_file_a_round_and_client_can_still_be_read(tmp_path: Path) -> None:
    labels = np.array([3, 4])
    inputs = RNG.random((2, 5)).astype(np.float32)
    for name in ("round_0001_client_0", "round_10000_client_12"):
        write_arrays(tmp_path / f"{name}.safetensors", {"inputs": inputs, "labels": labels})
    targets = Targets(folder=tmp_path)
    assert [(t.round, t.client) for t in targets] == [(1, 0), (10_000, 12)]
    found = targets.find(10_000, 12)
    assert found is not None
    np.testing.assert_array_equal(found.inputs, inputs)
    assert targets.find(2, 0) is None
    write_targets(tmp_path, [B])  # resumed by this version: its file holds for the client
    again = Targets(folder=tmp_path)
    assert [(t.round, t.client) for t in again] == [(1, 12), (2, 12), (3, 12), (1, 0)]


def test_behind_a_sum_is_all_that_its_clients_used() -> None:
    targets = Targets([A, B])
    whole = targets.behind(3, -1, (0, 12))
    assert whole is not None
    assert whole.client == -1
    np.testing.assert_array_equal(whole.inputs, np.concatenate([A.inputs, B.inputs[:1]]))
    np.testing.assert_array_equal(whole.labels, [0, 1, 2, 120])
    alone = targets.behind(2, -1, (0, 12))  # client 0 trained on nothing
    assert alone is not None
    np.testing.assert_array_equal(alone.labels, B.labels)
    assert targets.behind(1, -1, (0, 99)) is None  # nobody knows what 99 trained on
    assert targets.behind(2, 0) is None
    assert targets.behind(1, 99) is None
    assert targets.behind(1, -1) is None


def test_targets_at_hand_come_back() -> None:
    given = [Target(2, 7, A.inputs, A.labels), Target(1, 7, B.inputs, B.labels)]
    targets = targets_of(given)
    for target in given:
        found = targets.find(target.round, 7)
        assert found is not None
        np.testing.assert_array_equal(found.inputs, target.inputs)
    assert not targets_of([])


@pytest.mark.parametrize(
    "name", ["x", "round_1", "round_a_client_b", "round_1_client_-1", "client_", "client_-1"]
)
def test_a_file_that_names_no_client_is_refused(name: str, folder: Path) -> None:
    (folder / "client_0.safetensors").rename(folder / f"{name}.safetensors")
    with pytest.raises(ValueError, match="names no round and client"):
        Targets(folder=folder)


@pytest.mark.parametrize(
    "change",
    [
        {"used": np.ones((3, 2), dtype=np.bool_)},
        {"used": np.ones((3, 3), dtype=np.float32)},
        {"labels": np.zeros(3, dtype=np.float32)},
        {"inputs": np.full((3, 2, 3), np.nan, dtype=np.float32)},
        {"inputs": np.zeros((2, 2, 3), dtype=np.float32)},
    ],
)
def test_damaged_targets_are_refused(change: dict[str, np.ndarray], folder: Path) -> None:
    arrays = {"inputs": A.inputs, "labels": A.labels, "used": A.used} | change
    write_arrays(folder / "client_0.safetensors", arrays)
    with pytest.raises(TraceError, match="client_0"):
        Targets(folder=folder).find(1, 0)

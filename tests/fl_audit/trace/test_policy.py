"""Recording policies: what is kept, what an attack then sees, and where a cap ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fl_audit.errors import TraceError
from fl_audit.threat_model import PRESETS
from fl_audit.trace import RecordingPolicy, Reply, Trace, TraceView, TraceWriter, store

ROUNDS, CLIENTS = 4, 3


def model(number: int) -> dict[str, np.ndarray]:
    return {"w": np.full(1000, number, dtype=np.float32)}


def record(folder: Path, policy: RecordingPolicy) -> Trace:
    writer = TraceWriter(folder, policy)
    for number in range(1, ROUNDS + 1):
        writer.begin_round(number, model(number), list(range(CLIENTS)))
        replies = [Reply(c, model(10 * number + c), {"num-examples": 5}) for c in range(CLIENTS)]
        writer.add_replies(number, replies)
        writer.end_round(number, model(number + 1), {})
    writer.close()
    return Trace.open(folder)


def stored(trace: Trace) -> dict[int, list[str | int]]:
    found: dict[int, list[str | int]] = {}
    for number in trace.rounds:
        clients: list[str | int] = [c for c in range(CLIENTS) if trace.arrays(number, c)]
        models: list[str | int] = [
            p
            for p in ("broadcast", "aggregate")
            if trace.arrays(number, p)  # type: ignore[arg-type]
        ]
        found[number] = models + clients
    return found


def test_all_is_kept_and_each_model_once(tmp_path: Path) -> None:
    trace = record(tmp_path / "t", RecordingPolicy())
    assert stored(trace) == {n: ["broadcast", "aggregate", 0, 1, 2] for n in range(1, 5)}
    assert trace.verify() == []
    files = sorted(p.name for p in (tmp_path / "t").rglob("broadcast.safetensors"))
    assert len(files) == 1  # later broadcasts are the aggregate of the round before


@pytest.mark.parametrize("rounds", [[2], [3], [1, 3], [4]])
def test_targets_keep_chosen_replies_their_models_and_the_final_one(
    rounds: list[int], tmp_path: Path
) -> None:
    policy = RecordingPolicy(record="targets", clients=[1], rounds=rounds)
    trace = record(tmp_path / "t", policy)
    found = stored(trace)
    for number in range(1, ROUNDS + 1):
        assert (1 in found[number]) == (number in rounds)
        assert 0 not in found[number]
        if number in rounds:
            assert {"broadcast", "aggregate"} <= set(found[number])
    last = trace.arrays(ROUNDS, "aggregate")
    assert last is not None
    assert last["w"][0] == ROUNDS + 1
    assert trace.verify() == []


def test_what_was_left_out_cannot_be_attacked_by_mistake(tmp_path: Path) -> None:
    policy = RecordingPolicy(record="targets", rounds=[2])
    trace = record(tmp_path / "t", policy)
    view = TraceView(trace, PRESETS["curious-server"])
    assert view.rounds == (2,)
    assert view.clients(1) == ()
    assert view.unusable == []
    with pytest.raises(TraceError, match="recording policy did not keep"):
        view.client_model(1, 0)
    with pytest.raises(TraceError, match="recording policy did not keep"):
        TraceView(trace, PRESETS["curious-server"], up_to=3).final_model()
    assert view.final_model()["w"][0] == ROUNDS + 1


def test_digests_of_what_was_not_stored_are_those_of_what_would_have_been(tmp_path: Path) -> None:
    everything = record(tmp_path / "a", RecordingPolicy())
    chosen = record(tmp_path / "b", RecordingPolicy(record="targets", rounds=[2]))
    for number in everything.rounds:
        full, part = everything.round(number), chosen.round(number)
        assert full.broadcast is not None
        assert part.broadcast is not None
        assert part.broadcast.tensors == full.broadcast.tensors
        assert full.aggregate is not None
        assert part.aggregate is not None
        assert part.aggregate.tensors == full.aggregate.tensors


def test_none_keeps_counts_only(tmp_path: Path) -> None:
    trace = record(tmp_path / "t", RecordingPolicy(record="none"))
    assert list((tmp_path / "t").rglob("*.safetensors")) == []
    assert [r.num_examples for r in trace.round(1).replies] == [5, 5, 5]
    assert trace.verify() == []
    with pytest.raises(TraceError, match="recording policy did not keep"):
        TraceView(trace, PRESETS["curious-server"]).final_model()


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_a_cap_stops_storing_and_the_rest_stays_whole(tmp_path: Path) -> None:
    trace = record(tmp_path / "t", RecordingPolicy(max_megabytes=0.025))  # six models of 4 kB
    found = stored(trace)
    assert {0, 1, 2} <= set(found[1])
    assert not {0, 1, 2} & set(found[4])
    assert trace.round(4).replies[0].was_left_out
    assert trace.verify() == []


@pytest.mark.parametrize("cap", [0.001, 0.0042, 0.007, 0.0083, 0.0125, 0.02, 0.025, 0.04, 0.07])
@pytest.mark.parametrize(
    "settings", [{}, {"record": "targets", "clients": [1]}, {"record": "targets", "rounds": [2, 4]}]
)
def test_a_cap_is_never_passed_and_keeps_the_last_model(
    cap: float, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no time are there more bytes of arrays, models included, than allowed."""
    policy = RecordingPolicy(max_megabytes=cap, **settings)
    most, real = [0], store.write_bytes

    def write(path: Path, data: bytes) -> None:
        real(path, data)
        most.append(stored_bytes(tmp_path / "t"))

    monkeypatch.setattr(store, "write_bytes", write)
    trace = record(tmp_path / "t", policy)
    assert max(most) <= cap * 1e6
    assert trace.verify() == []
    last = trace.arrays(ROUNDS, "aggregate")
    if cap == 0.001:  # a model has 4 kB
        assert last is None
        assert trace.round(ROUNDS).aggregate is not None  # its digests
    else:
        assert last is not None
        assert last["w"][0] == ROUNDS + 1
    monkeypatch.undo()
    everything = record(tmp_path / "all", RecordingPolicy(**settings))
    assert (stored(trace) == stored(everything)) == (stored_bytes(tmp_path / "all") <= cap * 1e6)


def test_what_is_kept_below_the_cap_does_not_depend_on_it(tmp_path: Path) -> None:
    """A client's arrays are there, and then they are not: no gaps that depend on sizes."""
    trace = record(tmp_path / "t", RecordingPolicy(max_megabytes=0.04))
    left_out = [reply.was_left_out for n in trace.rounds for reply in trace.round(n).replies]
    assert left_out == sorted(left_out)
    assert 3 < sum(left_out) < 9


@pytest.mark.parametrize(
    "settings",
    [
        {"record": "targets"},
        {"record": "all", "clients": [1]},
        {"record": "none", "rounds": [1]},
        {"max_megabytes": 0},
        {"record": "some"},
    ],
)
def test_policies_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RecordingPolicy.model_validate(settings)


def test_opening_reads_no_arrays_and_one_layer_reads_that_layer_only(tmp_path: Path) -> None:
    """Everything but the wanted layer is overwritten after recording: reading it would raise."""
    writer = TraceWriter(tmp_path / "t")
    layers = {f"layer{i}": np.full(1000, i, dtype=np.float32) for i in range(5)}
    writer.begin_round(1, layers, [0])
    writer.add_replies(1, [Reply(0, layers)])
    writer.end_round(1, layers, {})
    writer.close()
    path = tmp_path / "t" / "round_0001" / "client_0.safetensors"
    content = bytearray(path.read_bytes())
    start = content.index(np.full(1000, 3, dtype=np.float32).tobytes())
    for at in range(len(content) - 5 * 4000, len(content)):
        if not start <= at < start + 4000:
            content[at] ^= 0xFF
    path.write_bytes(bytes(content))
    arrays = Trace.open(tmp_path / "t").arrays(1, 0)
    assert arrays is not None
    assert (arrays["layer3"] == 3).all()
    with pytest.raises(TraceError):
        arrays["layer2"]

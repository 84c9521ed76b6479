"""Models of single clients in a trace: kept, verified, replayed, exported, and shown in a view."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fl_audit.errors import TraceError
from fl_audit.threat_model import PRESETS
from fl_audit.trace import RecordingPolicy, Reply, Trace, TraceView, TraceWriter
from fl_audit.trace.export import export_trace
from fl_audit.trace.layout import SentTo
from fl_audit.trace.replay import ReplayError

Model = Callable[[int], dict[str, np.ndarray]]


def write(
    folder: Path, make: Model, policy: RecordingPolicy | None = None, *, others: bool = True
) -> Trace:
    """One round of four clients; 1 and 2 are sent one other model, 3 a third one."""
    writer = TraceWriter(folder, policy)
    sent = {1: make(5), 2: make(5), 3: make(6)} if others else {}
    writer.begin_round(1, make(0), [0, 1, 2, 3], sent)
    writer.add_replies(1, [Reply(c, make(10 + c), {"num-examples": 1}) for c in range(4)])
    writer.end_round(1, make(1), {})
    writer.close()
    return Trace.open(folder)


def test_what_each_client_received_comes_back(tmp_path: Path, make_model: Model) -> None:
    trace = write(tmp_path / "t", make_model)
    assert trace.verify() == []
    for client, seed in enumerate((0, 5, 5, 6)):
        arrays = trace.received(1, client)
        assert arrays is not None
        assert all((arrays[k] == v).all() for k, v in make_model(seed).items())
    stored = sorted(p.name for p in (tmp_path / "t" / "round_0001").glob("sent_*"))
    assert stored == ["sent_1.safetensors", "sent_3.safetensors"]
    assert trace.arrays(1, SentTo(0)) is None


def test_a_view_subtracts_what_was_received(tmp_path: Path, make_model: Model) -> None:
    view = TraceView(write(tmp_path / "t", make_model), PRESETS["malicious-server"])
    assert [clients for _, clients in view.received_groups(1)] == [(0,), (1, 2), (3,)]
    update = view.client_update(1, 3)
    expected = make_model(13)["w"].astype(float) - make_model(6)["w"]
    np.testing.assert_array_equal(update["w"], expected)
    assert (np.asarray(view.global_model(1)["w"]) == make_model(0)["w"]).all()


def test_an_honest_round_reads_as_before(tmp_path: Path, make_model: Model) -> None:
    honest = write(tmp_path / "honest", make_model, others=False)
    index = json.loads((tmp_path / "honest" / "round_0001" / "round.json").read_text())
    assert "sent" not in index
    assert honest.digest() != write(tmp_path / "other", make_model).digest()


def test_damage_and_loss_are_found(tmp_path: Path, make_model: Model) -> None:
    trace = write(tmp_path / "t", make_model)
    file = tmp_path / "t" / "round_0001" / "sent_3.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert any("sent_3" in finding for finding in trace.verify())
    file.unlink()
    assert trace.missing() == ["round_0001/sent_3.safetensors"]
    (finding,) = trace.verify()
    assert finding.startswith("round_0001/sent_3.safetensors = ")
    assert "missing, truncated or damaged" in finding
    (tmp_path / "t" / "round_0001" / "sent_0.safetensors").write_bytes(b"")
    assert any("not part of the trace" in finding for finding in trace.verify())


def test_the_policy_keeps_them_as_it_keeps_replies(tmp_path: Path, make_model: Model) -> None:
    targets = write(tmp_path / "a", make_model, RecordingPolicy(record="targets", clients=[2]))
    assert targets.received(1, 3) is None
    assert targets.received(1, 2) is not None
    view = TraceView(targets, PRESETS["malicious-server"])
    assert view.clients(1) == (2,)
    with pytest.raises(TraceError, match="model that client 3 received"):
        view.received(1, 3)
    nothing = write(tmp_path / "b", make_model, RecordingPolicy(record="none"))
    assert nothing.round(1).sent == []
    capped = write(tmp_path / "c", make_model, RecordingPolicy(max_megabytes=0.0008))
    assert capped.verify() == []


def test_a_replay_that_sends_something_else_is_refused(tmp_path: Path, make_model: Model) -> None:
    trace = write(tmp_path / "t", make_model)
    recorded = {1: trace.round(1)}
    for sent in ({1: make_model(5)}, {1: make_model(5), 2: make_model(5), 3: make_model(7)}):
        writer = TraceWriter(tmp_path / "t", recorded=recorded)
        with pytest.raises(ReplayError, match="round 1"):
            writer.begin_round(1, make_model(0), [0, 1, 2, 3], sent)
    same = {1: make_model(5), 2: make_model(5), 3: make_model(6)}
    TraceWriter(tmp_path / "t", recorded=recorded).begin_round(1, make_model(0), [0, 1, 2, 3], same)


@pytest.mark.parametrize("owner", [0, 2, 3])
def test_an_index_cannot_refer_elsewhere(owner: int, tmp_path: Path, make_model: Model) -> None:
    write(tmp_path / "t", make_model)
    path = tmp_path / "t" / "round_0001" / "round.json"
    index = json.loads(path.read_text())
    index["sent"][1]["same_as_client"] = owner
    path.write_text(json.dumps(index))
    with pytest.raises(TraceError, match="damaged"):
        Trace.open(tmp_path / "t")


def test_export_writes_them(tmp_path: Path, make_model: Model) -> None:
    trace = write(tmp_path / "t", make_model)
    export_trace(trace, tmp_path / "x", clients=[2], updates=True)
    names = sorted(p.name for p in (tmp_path / "x").iterdir())
    assert names == [
        "round_0001_aggregate.npz",
        "round_0001_broadcast.npz",
        "round_0001_sent_2.npz",
        "round_0001_update_2.npz",
    ]
    with np.load(tmp_path / "x" / names[3], allow_pickle=False) as update:
        expected = make_model(12)["w"].astype(float) - make_model(5)["w"]
        np.testing.assert_array_equal(update["w"], expected)

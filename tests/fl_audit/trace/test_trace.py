"""Writer and reader: what was seen comes back bit for bit, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_audit.errors import AuditError, TraceError
from fl_audit.trace import Reply, Trace, TraceWriter

Make = Callable[[Path], Path]
Model = Callable[[int], dict[str, np.ndarray]]

ARRAYS: dict[str, np.ndarray] = {
    "float16": np.array([1, np.inf, -0.0], dtype=np.float16),
    "float32, NaN": np.array([[np.nan, 1e-45]], dtype=np.float32),
    "float64": np.array([np.pi]),
    "bool": np.array([True, False]),
    "int8": np.array([-128, 127], dtype=np.int8),
    "uint16": np.array([65535], dtype=np.uint16),
    "int64": np.array([2**62], dtype=np.int64),
    "a batch-norm counter": np.array(7, dtype=np.int64),
    "a scalar weight": np.array(0.5, dtype=np.float32),
    "nothing in it": np.zeros((0, 3), dtype=np.float32),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "every other": np.arange(10, dtype=np.int32)[::2],
    "big endian": np.array([1, 2], dtype=">f4"),
}


def write_one(
    directory: Path, arrays: Mapping[str, np.ndarray] | None, **reply: Any
) -> TraceWriter:
    """One round, one client, which sends `arrays`."""
    writer = TraceWriter(directory)
    writer.begin_round(1, {"w": np.zeros(2, dtype=np.float32)}, [0])
    writer.add_replies(1, [Reply(reply.pop("client", 0), arrays, **reply)])
    writer.flush()
    return writer


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    sent = ARRAYS[name]
    write_one(tmp_path, {name: sent})
    read = Trace.open(tmp_path).arrays(1, 0)
    assert read is not None
    assert read[name].dtype == sent.dtype.newbyteorder("=")
    assert read[name].shape == sent.shape
    assert read[name].tobytes() == sent.astype(sent.dtype.newbyteorder("=")).tobytes()
    assert Trace.open(tmp_path).verify() == []


def test_everything_a_client_said_comes_back(trace_directory: Path, make_model: Model) -> None:
    trace = Trace.open(trace_directory)
    assert trace.rounds == (1, 2)
    assert trace.round(2).sampled == [0, 1, 2, 3, 4]
    for client in range(5):
        reply, arrays = trace.round(1).reply(client), trace.arrays(1, client)
        assert reply is not None
        assert arrays is not None
        assert reply.num_examples == 40 + client
        assert reply.metrics == {"num-examples": 40 + client, "loss": 1.5}
        assert sorted(arrays) == ["b", "steps", "w"]
        assert all((arrays[k] == v).all() for k, v in make_model(10 + client).items())
    failed = trace.round(2).reply(0)
    assert failed is not None
    assert (failed.error_code, failed.error_reason, failed.arrays) == (3, "out of memory", None)
    assert trace.arrays(2, 0) is None
    assert trace.arrays(2, "aggregate") is None
    assert trace.round(2).reply(9) is None


def test_a_name_that_was_not_sent_is_a_key_error(trace_directory: Path) -> None:
    arrays = Trace.open(trace_directory).arrays(1, 0)
    assert arrays is not None
    assert "nothing" not in arrays
    with pytest.raises(KeyError):
        arrays["nothing"]


def test_a_round_that_was_not_recorded_is_refused(trace_directory: Path) -> None:
    with pytest.raises(TraceError, match=r"round = 3: .* Recorded rounds: \[1, 2\]"):
        Trace.open(trace_directory).arrays(3, "broadcast")


def test_the_same_model_is_stored_once(trace_directory: Path, make_model: Model) -> None:
    assert not (trace_directory / "round_0002" / "broadcast.safetensors").exists()
    read = Trace.open(trace_directory).arrays(2, "broadcast")
    assert read is not None
    assert all((read[k] == v).all() for k, v in make_model(1).items())


def test_a_model_that_differs_in_one_bit_is_stored_again(tmp_path: Path) -> None:
    weights = np.ones(3, dtype=np.float32)
    writer = write_one(tmp_path, None)
    writer.end_round(1, {"w": weights}, {})
    writer.begin_round(2, {"w": np.nextafter(weights, np.float32(2))}, [0])
    read = Trace.open(tmp_path).arrays(2, "broadcast")
    assert read is not None
    assert (np.asarray(read["w"], dtype=np.float32) > 1).all()


def test_one_tensor_is_read_at_a_time(trace_directory: Path, make_model: Model) -> None:
    """Damage beside a tensor is not met, damage in it is."""
    file = trace_directory / "round_0001" / "client_0.safetensors"
    needle = make_model(10)["w"].tobytes()
    data = file.read_bytes()
    assert data.count(needle) == 1
    file.write_bytes(data.replace(needle, bytes([needle[0] ^ 1]) + needle[1:]))
    arrays = Trace.open(trace_directory).arrays(1, 0)
    assert arrays is not None
    assert (arrays["b"] == make_model(10)["b"]).all()
    with pytest.raises(TraceError, match="changed or damaged after recording"):
        arrays["w"]


def test_opening_reads_the_index_only(trace_directory: Path) -> None:
    for file in trace_directory.rglob("*.safetensors"):
        file.unlink()
    assert Trace.open(trace_directory).rounds == (1, 2)


# -- digest ------------------------------------------------------------------------------------


def digest_of(directory: Path) -> str:
    return Trace.open(directory).digest()


def test_the_digest_depends_on_nothing_but_what_was_seen(tmp_path: Path, make_trace: Make) -> None:
    assert digest_of(make_trace(tmp_path / "a")) == digest_of(make_trace(tmp_path / "b"))


BASE: dict[str, Any] = {
    "arrays": {"w": np.ones(2, dtype=np.float32)},
    "metrics": {"num-examples": 40},
    "error_code": 1,
    "error_reason": "at 0x7f3a",
}


SEEN: dict[str, dict[str, Any]] = {
    "one bit of an array": {
        "arrays": {"w": np.nextafter(np.ones(2, dtype=np.float32), np.float32(2))}
    },
    "its name": {"arrays": {"v": np.ones(2, dtype=np.float32)}},
    "its shape": {"arrays": {"w": np.ones((1, 2), dtype=np.float32)}},
    "its dtype": {"arrays": {"w": np.ones(2, dtype=np.float32).view(np.int32)}},
    "that there is one": {"arrays": None},
    "the count": {"metrics": {"num-examples": 41}},
    "that there is a count": {"metrics": {}},
    "the error": {"error_code": 2},
    "that there is an error": {"error_code": None},
    "the client": {"client": 1},
}
UNSEEN: dict[str, dict[str, Any]] = {
    "the error's words": {"error_reason": "at 0x5c10"},
    "timings": {"metrics": {"num-examples": 40, "seconds": 0.2}},
}


@pytest.mark.parametrize("what", [*SEEN, *UNSEEN])
def test_the_digest_covers_arrays_counts_errors_and_keys_only(what: str, tmp_path: Path) -> None:
    write_one(tmp_path / "a", **BASE)
    write_one(tmp_path / "b", **{**BASE, **(SEEN | UNSEEN)[what]})
    assert (digest_of(tmp_path / "a") != digest_of(tmp_path / "b")) == (what in SEEN)


def test_the_digest_does_not_depend_on_the_order_of_replies(tmp_path: Path) -> None:
    replies = [Reply(c, {"w": np.full(2, c, dtype=np.float32)}) for c in (0, 1)]
    for name, order in (("a", replies), ("b", replies[::-1])):
        writer = TraceWriter(tmp_path / name)
        writer.begin_round(1, {"w": np.zeros(2, dtype=np.float32)}, [r.client for r in order])
        writer.add_replies(1, order)
        writer.flush()
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b")


def test_the_digest_covers_broadcast_aggregate_and_round(tmp_path: Path) -> None:
    zeros, ones = np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32)
    digests = set()
    for number, (server_round, broadcast, aggregate) in enumerate(
        [(1, zeros, zeros), (1, ones, zeros), (1, zeros, ones), (1, zeros, None), (2, zeros, zeros)]
    ):
        writer = TraceWriter(tmp_path / str(number))
        writer.begin_round(server_round, {"w": broadcast}, [0])
        writer.add_replies(server_round, [])
        writer.end_round(server_round, None if aggregate is None else {"w": aggregate}, {})
        digests.add(digest_of(tmp_path / str(number)))
    assert len(digests) == 5


# -- verify ------------------------------------------------------------------------------------


def test_a_sound_trace_verifies(trace_directory: Path) -> None:
    assert Trace.open(trace_directory).verify() == []


def test_verify_names_each_damaged_file(trace_directory: Path) -> None:
    changed = trace_directory / "round_0001" / "client_3.safetensors"
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    (trace_directory / "round_0001" / "aggregate.safetensors").unlink()
    findings = Trace.open(trace_directory).verify()
    assert len(findings) == 3  # the aggregate is missed twice: round 2 sent it out
    assert sum("round_0001/aggregate.safetensors" in line for line in findings) == 2
    assert sum("round_0001/client_3.safetensors" in line for line in findings) == 1


def test_verify_misses_an_index(trace_directory: Path) -> None:
    (trace_directory / "round_0001" / "round.json").unlink()
    assert Trace.open(trace_directory).verify() == ["round_0001: there is no round.json"]


def test_verify_finds_an_index_that_hides_nan(trace_directory: Path) -> None:
    index = trace_directory / "round_0002" / "round.json"
    content = json.loads(index.read_text())
    content["replies"][1]["is_finite"] = True
    index.write_text(json.dumps(content))
    changed, finding = Trace.open(trace_directory).verify()
    assert changed == "round_0002/round.json: its sha256 differs from digests.json"
    assert "round_0002/client_1.safetensors" in finding


# -- what goes wrong while recording --------------------------------------------------------------


def test_an_interrupted_round_is_readable_as_far_as_it_got(tmp_path: Path) -> None:
    writer = write_one(tmp_path, {"w": np.ones(2, dtype=np.float32)})
    assert Trace.open(tmp_path).round(1).state == "replied"
    writer.end_round(1, {"w": np.ones(2, dtype=np.float32)}, {})
    assert Trace.open(tmp_path).round(1).state == "aggregated"
    writer.begin_round(2, {"w": np.full(2, 3, dtype=np.float32)}, [0])
    assert Trace.open(tmp_path).round(2).state == "sent"
    (tmp_path / "round_0003").mkdir()  # killed before the index was written
    assert Trace.open(tmp_path).rounds == (1, 2)


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": np.ones(2, dtype=np.clongdouble)},
        {"w": np.array([{"any": "object"}], dtype=object)},
        {"w\ud800": np.ones(2, dtype=np.float32)},
    ],
    ids=["a rare dtype", "objects", "half a character"],
)
def test_a_reply_that_cannot_be_stored_costs_that_client_only(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    writer = TraceWriter(tmp_path)
    writer.begin_round(1, {"w": np.zeros(2, dtype=np.float32)}, [0, 1])
    writer.add_replies(1, [Reply(0, arrays), Reply(1, {"w": np.ones(2, dtype=np.float32)})])
    trace = Trace.open(tmp_path)
    lost, kept = trace.round(1).reply(0), trace.arrays(1, 1)
    assert lost is not None
    assert kept is not None
    assert lost.arrays is None
    assert "cannot be stored" in str(lost.error_reason)
    assert (kept["w"] == 1).all()
    (line,) = writer.unfit_replies()
    assert line.startswith("client 0: its arrays cannot be stored")


def test_values_that_json_cannot_hold_become_words(tmp_path: Path) -> None:
    metrics = {
        "num-examples": float("nan"),
        "loss": [float("inf"), 1],
        "seen": np.int64(3),
        "ok": True,
        "reason\u202e": "a\x1b[31mb",
        "half": "\ud800",
    }
    write_one(tmp_path, None, metrics=metrics)
    reply = Trace.open(tmp_path).round(1).reply(0)
    assert reply is not None
    assert reply.num_examples == "nan"
    assert reply.metrics["loss"] == ["inf", 1]
    assert reply.metrics["seen"] == 3
    assert reply.metrics["ok"] == "True"
    assert reply.metrics["reason"] == "a b"
    assert reply.metrics["half"] == ""


@pytest.mark.parametrize("step", ["add_replies", "end_round"])
def test_a_round_that_was_not_begun_is_refused(step: str, tmp_path: Path) -> None:
    writer = write_one(tmp_path, None)
    with pytest.raises(TraceError, match="was not begun"):
        getattr(writer, step)(2, *([[]] if step == "add_replies" else [None, {}]))
    assert not (tmp_path / "round_0002").exists()


def test_a_recorded_round_is_never_overwritten(trace_directory: Path) -> None:
    """Not by a second run in one directory, and not by the replies that follow a refusal."""
    before = {p: p.read_bytes() for p in trace_directory.rglob("*") if p.is_file()}
    for writer in (TraceWriter(trace_directory), TraceWriter(trace_directory)):
        with pytest.raises(TraceError, match="never overwritten"):
            writer.begin_round(2, {"w": np.zeros(9)}, [0])
        with pytest.raises(AuditError):
            writer.add_replies(2, [Reply(0, {"w": np.zeros(9)})])
        with pytest.raises(AuditError):
            writer.end_round(2, {"w": np.zeros(9)}, {})
    assert {p: p.read_bytes() for p in trace_directory.rglob("*") if p.is_file()} == before


def test_replies_under_one_number_are_refused(tmp_path: Path) -> None:
    """Two nodes that were given one partition id: the second would replace the first."""
    writer = TraceWriter(tmp_path)
    writer.begin_round(1, {"w": np.zeros(2)}, [0, 0])
    with pytest.raises(TraceError, match=r"= \[0\]: these clients replied more than once"):
        writer.add_replies(1, [Reply(0, None), Reply(1, None), Reply(0, None)])

"""A trace from an enemy: it is read exactly, or refused by name. Nothing else ever happens."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fl_audit.errors import AuditError, TraceError
from fl_audit.threat_model import Knowledge, Observation, ThreatModel
from fl_audit.trace import Trace, TraceView

Make = Callable[[Path], Path]
Model = Callable[[int], dict[str, np.ndarray]]
EVERYTHING = ThreatModel("server", sees=~Observation(0), knows=~Knowledge(0))
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
NASTY = "a\x1b[2J\x1b]0;owned\x07\u202egpj.exe\u2066\x9b31m\r\n"


def index_of(trace: Path) -> Path:
    return trace / "round_0001" / "round.json"


def edit(trace: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the index of round 1 as parsed JSON."""
    content = json.loads(index_of(trace).read_text())
    change(content)
    index_of(trace).write_text(json.dumps(content))


def arrays_file(trace: Path) -> Path:
    return trace / "round_0001" / "client_0.safetensors"


def read(trace: Path) -> dict[tuple[int, str, str], bytes]:
    """Every value that an attack could get out of a trace."""
    view = TraceView(Trace.open(trace), EVERYTHING)
    values = {}
    for server_round in view.rounds:
        parties: dict[str, Any] = {"broadcast": view.global_model(server_round)}
        parties["aggregate"] = view.aggregate(server_round) or {}
        for client in view.clients(server_round):
            parties[str(client)] = view.client_model(server_round, client)
        for party, arrays in parties.items():
            for name, array in arrays.items():
                values[server_round, party, name] = array.tobytes()
    return values


# -- the index -----------------------------------------------------------------------------------

DAMAGED_JSON: dict[str, bytes] = {
    "empty": b"",
    "truncated": b'{"schema_version": 1, "round": 1, "sta',
    "not UTF-8": b'{"schema_version": 1, "\xff\xfe": 1}',
    "UTF-16": '{"schema_version": 1}'.encode("utf-16"),
    "a list": b"[]",
    "a number": b"1e400",
    "null": b"null",
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep tables": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "as deep as the parser goes": b"[" * 500 + b"]" * 500,
    "a huge integer": b'{"round": 1' + b"0" * 5000 + b"}",
    "a huge version": b'{"schema_version": 1' + b"0" * 4000 + b"}",
    "half a character": b'{"schema_version": 1, "round": "\\ud800"}',
}


@pytest.mark.parametrize("name", DAMAGED_JSON)
def test_a_damaged_index_is_refused(name: str, trace_directory: Path) -> None:
    index_of(trace_directory).write_bytes(DAMAGED_JSON[name])
    with pytest.raises(TraceError, match=r"round_0001/round\.json"):
        Trace.open(trace_directory)


def put(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Replace one key, given as a path with dots."""

    def change(content: dict[str, Any]) -> None:
        *parents, last = [int(k) if k.isdigit() else k for k in key.split(".")]
        node: Any = content
        for parent in parents:
            node = node[parent]
        node[last] = value

    return change


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("round", 2),
        ("round", -1),
        ("round", float("inf")),
        ("state", "done"),
        ("extra", 1),
        ("replies", {}),
        ("replies.0.client", -1),
        ("replies.0.client", "../../../etc/passwd"),
        ("replies.0.client", 1),  # a client twice
        ("replies.0.file", "/etc/passwd"),
        ("replies.0.num_examples", float("nan")),
        ("replies.0.metrics.loss", float("-inf")),
        ("replies.0.arrays.tensors.w.sha256", "0"),
        ("replies.0.arrays.same_as_aggregate", 0),
        ("replies.0.arrays.path", "../x.safetensors"),
        ("broadcast", 3),
        ("schema_version", 0),
        ("schema_version", "1.0"),
    ],
)
def test_an_index_with_an_impossible_value_is_refused(
    key: str, value: object, trace_directory: Path
) -> None:
    edit(trace_directory, put(key, value))
    with pytest.raises(TraceError, match="missing, truncated or damaged"):
        Trace.open(trace_directory)


def test_a_key_that_stands_there_twice_is_refused(trace_directory: Path) -> None:
    """Parsers disagree about which one counts."""
    text = index_of(trace_directory).read_text()
    index_of(trace_directory).write_text(text.replace('"round":1', '"round":7,"round":1', 1))
    with pytest.raises(TraceError, match="twice"):
        Trace.open(trace_directory)


def test_a_newer_schema_asks_for_an_upgrade(trace_directory: Path) -> None:
    edit(trace_directory, put("schema_version", 2))
    with pytest.raises(TraceError, match=r"schema_version = 2: .* Upgrade fl-audit"):
        Trace.open(trace_directory)


MISFITS: dict[str, tuple[str, object]] = {
    "another digest": ("tensors.w.sha256", "0" * 64),
    "another dtype": ("tensors.w.dtype", "float64"),
    "an endless dtype": ("tensors.w.dtype", "x" * 100_000),
    "another shape": ("tensors.w.shape", [2, 3]),
    "an endless shape": ("tensors.w.shape", [10**400] * 1000),
    "a round without aggregate": ("same_as_aggregate", 2),
    "a round that is not there": ("same_as_aggregate", 99),
    "a round that cannot be": ("same_as_aggregate", 10**4000),
}


@pytest.mark.parametrize("name", MISFITS)
def test_an_index_that_does_not_fit_its_arrays_is_refused(name: str, trace_directory: Path) -> None:
    key, value = MISFITS[name]
    edit(trace_directory, put(f"broadcast.{key}", value))
    arrays = Trace.open(trace_directory).arrays(1, "broadcast")
    assert arrays is not None
    with pytest.raises(TraceError) as caught:
        arrays["w"]
    assert len(str(caught.value)) < 1000, "a message is read by a person"


def test_a_client_with_an_endless_number_is_refused(trace_directory: Path) -> None:
    edit(trace_directory, put("replies.0.client", 10**4000))
    trace = Trace.open(trace_directory)
    arrays = trace.arrays(1, 10**4000)
    assert arrays is not None
    with pytest.raises(TraceError):
        arrays["w"]
    index, file, stray = trace.verify()  # the index, the file it names, the file it named before
    assert "its sha256 differs" in index
    assert "too long" in file
    assert stray == "round_0001/client_0.safetensors: it is not part of the trace"


def test_nasty_names_and_reasons_never_reach_a_terminal(trace_directory: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        reply = content["replies"][0]
        reply["arrays"]["tensors"][NASTY] = reply["arrays"]["tensors"]["w"]
        reply["error_code"], reply["error_reason"] = 1, NASTY
        reply["metrics"] = {NASTY: NASTY}
        reply["num_examples"] = NASTY

    edit(trace_directory, change)
    trace = Trace.open(trace_directory)
    view = TraceView(trace, EVERYTHING)
    reply, arrays = trace.round(1).reply(0), trace.arrays(1, 0)
    assert reply is not None
    assert arrays is not None
    shown = [*view.unusable, *trace.verify(), *reply.metrics, *map(str, reply.metrics.values())]
    assert len(shown) == 9
    for access in (lambda: arrays[NASTY], lambda: view.num_examples(1, 0)):
        with pytest.raises(AuditError) as caught:
            access()
        shown.append(str(caught.value))
    assert [text for text in shown if UNSAFE.search(text)] == []


# -- the arrays ------------------------------------------------------------------------------------


def header(text: bytes, data: bytes = b"", *, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text + data


BAD_FILES: dict[str, bytes] = {
    "empty": b"",
    "half a length": b"\x10\x00",
    "a header longer than the file": header(b"{}", size=1000),
    "a header longer than memory": header(b"{}", size=2**63),
    "a header of 2**64 - 1": header(b"{}", size=2**64 - 1),
    "no JSON": header(b"\x80\x04\x95"),
    "deep JSON": header(b"[" * 100_000),
    "data beyond the end": header(b'{"w":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}}'),
    "offsets backwards": header(b'{"w":{"dtype":"F32","shape":[0],"data_offsets":[8,0]}}'),
    "a shape that overflows": header(
        b'{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
    ),
    "an unknown dtype": header(b'{"w":{"dtype":"PICKLE","shape":[0],"data_offsets":[0,0]}}'),
    "bfloat16": header(b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}', b"\0\0"),
    "float8": header(b'{"w":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}', b"\0"),
    "float4": header(b'{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"\0"),
    "another tensor": save({"v": np.zeros(1)}),
    "another dtype": save({"w": np.zeros((3, 2), dtype=np.float64)}),
    "another shape": save({"w": np.zeros((2, 3), dtype=np.float32)}),
    "other values": save({"w": np.zeros((3, 2), dtype=np.float32)}),
    "a pickle": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_array_file_is_refused(name: str, trace_directory: Path) -> None:
    arrays_file(trace_directory).write_bytes(BAD_FILES[name])
    trace = Trace.open(trace_directory)
    arrays = trace.arrays(1, 0)
    assert arrays is not None
    with pytest.raises(TraceError, match=r"round_0001/client_0\.safetensors"):
        arrays["w"]
    assert len(trace.verify()) == 1


def test_a_missing_array_file_is_refused(trace_directory: Path) -> None:
    arrays_file(trace_directory).unlink()
    arrays = Trace.open(trace_directory).arrays(1, 0)
    assert arrays is not None
    with pytest.raises(TraceError, match="missing"):
        arrays["w"]


def test_a_folder_in_place_of_a_file_is_refused(trace_directory: Path) -> None:
    arrays_file(trace_directory).unlink()
    arrays_file(trace_directory).mkdir()
    trace = Trace.open(trace_directory)
    arrays = trace.arrays(1, 0)
    assert arrays is not None
    with pytest.raises(TraceError):
        arrays["w"]
    assert len(trace.verify()) == 1


# -- the folder ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["round_0001/round.json", "round_0001/client_0.safetensors"])
@pytest.mark.parametrize("to", ["outside", "inside", "nowhere"])
def test_a_file_that_is_a_link_is_refused(what: str, to: str, trace_directory: Path) -> None:
    link = trace_directory / what
    target = (trace_directory if to == "inside" else trace_directory.parent) / "moved"
    link.rename(target)
    link.symlink_to(target)
    if to == "nowhere":
        target.unlink()
    with pytest.raises(TraceError, match="this is a link"):
        Trace.open(trace_directory)


def test_a_folder_that_is_a_link_is_refused(trace_directory: Path) -> None:
    """Even one with a sound round in it: what lies behind a link is not part of the trace."""
    target = trace_directory.parent / "elsewhere"
    (trace_directory / "round_0001").rename(target)
    (trace_directory / "round_0001").symlink_to(target, target_is_directory=True)
    with pytest.raises(TraceError, match="this is a link"):
        Trace.open(trace_directory)


def test_a_pipe_is_refused_before_it_is_read(trace_directory: Path) -> None:
    """Reading one would wait for ever."""
    arrays_file(trace_directory).unlink()
    os.mkfifo(arrays_file(trace_directory))
    with pytest.raises(TraceError, match="a link or a device"):
        Trace.open(trace_directory)


def test_folders_with_other_names_are_not_rounds(trace_directory: Path) -> None:
    round_one = trace_directory / "round_0001"
    for name in ("round_٠٠٠٣", "round_00001", "round_3", "round_0003\n", "round_0003.bak"):
        shutil.copytree(round_one, trace_directory / name)
    assert Trace.open(trace_directory).rounds == (1, 2)


def test_folders_deeper_than_python_recurses_do_no_harm(trace_directory: Path) -> None:
    deep = trace_directory.joinpath(*["d"] * 600)
    deep.mkdir(parents=True)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(500)  # lowered, so that pytest can still delete what we made
    try:
        assert Trace.open(trace_directory).rounds == (1, 2)
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("name", ["no/such/folder", "x" * 5000, "round_0001/round.json"])
def test_no_trace_is_refused(name: str, trace_directory: Path) -> None:
    with pytest.raises(TraceError, match="there is no such folder"):
        Trace.open(trace_directory / name)


# -- random damage ---------------------------------------------------------------------------------

damage = st.lists(
    st.tuples(
        st.sampled_from(["flip", "delete", "insert", "truncate"]),
        st.floats(0, 1, exclude_max=True),  # where, as a fraction of the file
        st.integers(0, 7),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def damaged(data: bytes, blows: list[tuple[str, float, int, bytes]]) -> bytes:
    for how, where, bit, junk in blows:
        if not data:
            break
        place = int(where * len(data))
        if how == "flip":
            data = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        elif how == "delete":
            data = data[:place] + data[place + len(junk) :]
        elif how == "insert":
            data = data[:place] + junk + data[place:]
        else:
            data = data[:place]
    return data


@pytest.mark.parametrize("victim", [index_of, arrays_file], ids=["round.json", "safetensors"])
def test_random_damage_is_refused_or_harmless(
    victim: Callable[[Path], Path], make_trace: Make
) -> None:
    """Arrays are what they were, or an AuditError says that they are not; where the digest is
    what it was, so are counts and errors."""
    with tempfile.TemporaryDirectory() as folder:
        trace = make_trace(Path(folder) / "trace")
        file, values, digest = victim(trace), read(trace), Trace.open(trace).digest()
        sound, seen = file.read_bytes(), _claims(trace)

        @settings(max_examples=200, deadline=None, derandomize=True, database=None)
        @given(damage)
        def check(blows: list[tuple[str, float, int, bytes]]) -> None:
            file.write_bytes(damaged(sound, blows))
            try:
                assert read(trace).items() <= values.items()
                assert all(isinstance(line, str) for line in Trace.open(trace).verify())
                if Trace.open(trace).digest() == digest:
                    assert _claims(trace) == seen
            except AuditError:
                pass

        check()


def _claims(trace: Path) -> list[object]:
    """What the index says besides the arrays."""
    return [
        (r.round, sorted(r.sampled), [(q.client, q.num_examples, q.error_code) for q in r.replies])
        for r in (Trace.open(trace).round(n) for n in Trace.open(trace).rounds)
    ]

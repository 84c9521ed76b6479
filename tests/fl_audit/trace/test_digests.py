"""Indices that were changed, removed or added to are noticed; a killed process raises no alarm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_audit import files
from fl_audit.trace import RecordingPolicy, Reply, Trace, TraceWriter

ROUNDS, CLIENTS = 3, 2


def model(number: int) -> dict[str, np.ndarray]:
    return {"w": np.full(3, number, dtype=np.float32)}


def record(folder: Path, policy: RecordingPolicy, *, resume: bool = False) -> None:
    found = Trace.open(folder) if resume and folder.is_dir() else None
    recorded = {} if found is None else {n: found.round(n) for n in found.rounds}
    writer = TraceWriter(folder, policy, recorded=recorded)
    for number in range(1, ROUNDS + 1):
        writer.begin_round(number, model(number), list(range(CLIENTS)))
        replies = [Reply(c, model(10 * number + c), {"num-examples": 5}) for c in range(CLIENTS)]
        writer.add_replies(number, replies)
        writer.flush()
        writer.end_round(number, model(number + 1), {})
    writer.close()


# -- forgeries -----------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]
FORGERIES: dict[str, Change] = {
    "another count": lambda i: i["replies"][0].update(num_examples=4),
    "a reply less": lambda i: i["replies"].pop(),
    "another state": lambda i: i.update(state="replied"),
    "another metric": lambda i: i.update(metrics={"accuracy": 1.0}),
    "a client that was not asked": lambda i: i["sampled"].append(7),
    "an update that was not kept": lambda i: i["replies"][0].update(arrays=None, was_left_out=True),
}


@pytest.mark.parametrize("number", [1, ROUNDS])
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_index_is_noticed(name: str, number: int, tmp_path: Path) -> None:
    record(tmp_path / "t", RecordingPolicy())
    path = tmp_path / "t" / f"round_{number:04d}" / "round.json"
    index = json.loads(path.read_text())
    FORGERIES[name](index)
    path.write_text(json.dumps(index))
    findings = Trace.open(tmp_path / "t").verify()
    assert f"round_{number:04d}/round.json: its sha256 differs from digests.json" in findings


def test_a_round_that_is_gone_is_noticed(tmp_path: Path) -> None:
    record(tmp_path / "t", RecordingPolicy(record="none"))
    shutil.rmtree(tmp_path / "t" / "round_0003")
    assert Trace.open(tmp_path / "t").verify() == [
        "round 3: digests.json knows it, and it is not there"
    ]


@pytest.mark.parametrize(
    "stray",
    [
        "notes.txt",
        "round_0002/client_7.safetensors",
        "round_0002/round.json.part",
        "round_0003/evil.py",
        "round_0002.bak/round.json",
    ],
)
def test_a_file_that_no_index_knows_is_noticed(stray: str, tmp_path: Path) -> None:
    record(tmp_path / "t", RecordingPolicy())
    path = tmp_path / "t" / stray
    path.parent.mkdir(exist_ok=True)
    path.write_text("\u202ehello")
    (finding,) = Trace.open(tmp_path / "t").verify()
    place = stray.partition("/")[0] if ".bak" in stray else stray
    assert finding == f"{place}: it is not part of the trace"


def test_a_trace_without_digests_is_readable_and_not_verified(tmp_path: Path) -> None:
    """As fl-audit wrote them before."""
    record(tmp_path / "t", RecordingPolicy())
    (tmp_path / "t" / "digests.json").unlink()
    trace = Trace.open(tmp_path / "t")
    last = trace.arrays(ROUNDS, "aggregate")
    assert last is not None
    assert last["w"][0] == ROUNDS + 1
    (finding,) = trace.verify()
    assert finding.startswith("digests.json: there is none, so no round.json can be verified")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"rounds": {"1": ["0"]}}', '{"rounds": {"x": []}}', '{"rounds": {}}']
)
def test_damaged_digests_are_said(text: str, tmp_path: Path) -> None:
    record(tmp_path / "t", RecordingPolicy(record="none"))
    (tmp_path / "t" / "digests.json").write_text(text)
    findings = Trace.open(tmp_path / "t").verify()
    assert len(findings) == (ROUNDS if "{}" in text else 1)
    assert all("verified" in finding for finding in findings)


# -- a process that dies, at any write -------------------------------------------------------------


class Killed(BaseException):
    """What SIGKILL looks like from inside: nothing that comes after is done."""


POLICIES = {
    "all": RecordingPolicy(),
    "targets": RecordingPolicy(record="targets", rounds=[2]),
    "none": RecordingPolicy(record="none"),
    "cap": RecordingPolicy(max_megabytes=0.0004),  # of 100 bytes a model
}


UNFINISHED = ("there is no round.json", "no digest was recorded, so it cannot be verified")
"""What is said of the round in which a process died; digests of replies come a little later."""


def kill_at(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die when the write after number `last` is due; whatever this process tries is in vain."""
    from fl_audit.trace import digests, index_writer, store

    count, real = [0], files.write_bytes

    def write(path: Path, data: bytes) -> None:
        count[0] += 1
        if count[0] > last:
            raise Killed
        real(path, data)

    def write_text(path: Path, text: str) -> None:
        write(path, text.encode())

    monkeypatch.setattr(store, "write_bytes", write)
    monkeypatch.setattr(index_writer, "write_text", write_text)
    monkeypatch.setattr(digests, "write_text", write_text)


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@pytest.mark.parametrize("name", POLICIES)
def test_killed_at_any_write_it_verifies_and_resumes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = POLICIES[name]
    record(tmp_path / "whole", policy)
    whole, kills, done = contents(tmp_path / "whole"), 0, False
    while not done:
        folder = tmp_path / f"killed {kills}"
        with monkeypatch.context() as patch:
            kill_at(kills, patch)
            try:
                record(folder, policy)
                done = True
            except Killed:
                pass
            try:  # and again while it is resumed, halfway
                kill_at(kills // 2, patch)
                record(folder, policy, resume=True)
            except Killed:
                pass
        alarms = [f for f in Trace.open(folder).verify() if not f.endswith(UNFINISHED)]
        assert alarms == [], kills
        record(folder, policy, resume=True)
        assert contents(folder) == whole, kills
        kills += 1
    assert kills > 15

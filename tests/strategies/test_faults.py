"""Clients that misbehave: the round is recorded, and the strategy does what it always does.

Each fault runs with the bare strategy and with the wrapper; both must end alike: the same arrays,
or the same exception. Flower's own answer to some faults is to stop the run; that is kept, too.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as fl
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from fl_audit.errors import clean_text
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS
from fl_audit.trace import RecordingPolicy, Trace, TraceView
from fl_audit.verify import verify_run
from strategies.curious import CuriousStrategy
from strategies.ordered_grid import OrderedGrid

Federate = Callable[..., Result]
Sha256 = Callable[[Result], str]
Content = dict[str, np.ndarray] | RecordDict
BAD = 2  # partition of the client that misbehaves; its node id is 3
QUIET: dict[str, Any] = {"fraction_evaluate": 0.0}


def honest(message: Message) -> dict[str, np.ndarray]:
    return {k: 0.9 * v.numpy() for k, v in message.content.array_records["arrays"].items()}


def content(arrays: dict[str, np.ndarray], num_examples: float, **extra: Any) -> RecordDict:
    records = {"arrays": ArrayRecord({k: Array(v) for k, v in arrays.items()})}
    metrics = MetricRecord({"num-examples": num_examples, "train_loss": 1.0})
    return RecordDict({**records, "metrics": metrics, **extra})


def raises(message: Message) -> Content:
    raise RuntimeError("no battery")


def nan(message: Message) -> Content:
    return {k: np.full_like(v, np.nan) for k, v in honest(message).items()}


def infinite(message: Message) -> Content:
    return {k: np.full_like(v, np.inf) for k, v in honest(message).items()}


def wrong_shape(message: Message) -> Content:
    return {k: v[:2] for k, v in honest(message).items()}


def shape_one(message: Message) -> Content:
    return {k: np.ones(1, dtype=v.dtype) for k, v in honest(message).items()}


def missing_key(message: Message) -> Content:
    return {"w": honest(message)["w"]}


def extra_record(message: Message) -> Content:
    more = ArrayRecord({"x": Array(np.ones(3))})
    return content(honest(message), 10, more=more)


def zero_update(message: Message) -> Content:
    return {k: v.numpy() for k, v in message.content.array_records["arrays"].items()}


def undecodable(message: Message) -> Content:
    record = ArrayRecord({k: Array(v) for k, v in honest(message).items()})
    record["w"] = Array("float32", (4, 3), "numpy.ndarray", b"not an array")
    return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})


def extra_metrics(message: Message) -> Content:
    return content(honest(message), 10, more=MetricRecord({"loss": 1.0}))


def nothing(message: Message) -> Content:
    return RecordDict({"metrics": MetricRecord({"num-examples": 1})})


def counts(number: float) -> Callable[[Message], Content]:
    return lambda message: content(honest(message), number)


FAULTS: dict[str, Callable[[Message], Content]] = {
    "raises": raises,
    "NaN": nan,
    "infinite": infinite,
    "wrong shape": wrong_shape,
    "shape (1,)": shape_one,
    "missing key": missing_key,
    "extra record": extra_record,
    "zero update": zero_update,
    "undecodable": undecodable,
    "counts 0": counts(0),
    "counts -90": counts(-90),
    "counts 1e12": counts(1e12),
    "counts NaN": counts(float("nan")),
    "extra metrics": extra_metrics,
    "nothing": nothing,
}
MISFIT = "client 3 sent arrays that do not fit the model: "
COUNT = "client 3 says num-examples = "
SAID = {
    "raises": "client 3 failed: RuntimeError: no battery",
    "NaN": "client 3 sent NaN or infinite values",
    "infinite": "client 3 sent NaN or infinite values",
    "wrong shape": f"{MISFIT}'w' has shape [2, 3], not [4, 3]; 'b' has shape [2], not [4]",
    "shape (1,)": f"{MISFIT}'w' has shape [1], not [4, 3]; 'b' has shape [1], not [4]",
    "missing key": f"{MISFIT}'b' is missing",
    "extra record": f"{MISFIT}'more/x' is not the model's",
    "extra metrics": "client 3 sent records beside its model and its metrics: 'more'",
    "nothing": "client 3 sent no arrays",
    "undecodable": "client 3 failed: arrays cannot be read",
    "counts 0": f"{COUNT}0: it should be a number above 0 and at most 1,000,000,000",
    "counts -90": f"{COUNT}-90: it should be",
    "counts 1e12": f"{COUNT}1000000000000.0: it should be",
    "counts NaN": f"{COUNT}'nan': it should be",
}
"""What run.json says of each fault; a zero update is none."""
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(**QUIET),
    "FedMedian": lambda: fl.FedMedian(**QUIET),
    "DP": lambda: fl.DifferentialPrivacyServerSideFixedClipping(
        FedAvg(**QUIET), noise_multiplier=0.1, clipping_norm=1.0, num_sampled_clients=7
    ),
}


def outcome(federate: Federate, sha256: Sha256, strategy: Strategy, function: Any) -> str:
    """Digest of the final arrays, or the exception that ended the run."""
    try:
        return sha256(federate(strategy, function, rounds=2))
    except Exception as error:  # noqa: BLE001 — whatever Flower raises is the outcome
        return f"{type(error).__name__}: {error}"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_ends_as_without_the_wrapper_and_its_rounds_stay_valid(
    fault: str, strategy: str, federate: Federate, sha256: Sha256, tmp_path: Path
) -> None:
    def client(message: Message, context: Context) -> Content:
        is_bad = context.node_config["partition-id"] == BAD
        return FAULTS[fault](message) if is_bad else honest(message)

    bare = outcome(federate, sha256, STRATEGIES[strategy](), client)
    curious = CuriousStrategy(STRATEGIES[strategy](), trace=tmp_path / "run")
    assert outcome(federate, sha256, curious, client) == bare
    trace = Trace.open(tmp_path / "run" / "trace")
    assert trace.verify() == []
    assert len(trace.round(1).replies) == 7
    view = TraceView(trace, PRESETS["curious-server"])
    usable = fault in ("zero update", "extra metrics") or fault.startswith("counts")
    assert view.clients(1) == ((1, 2, 3, 4, 5, 6, 7) if usable else (1, 2, 4, 5, 6, 7))
    manifest = RunDirectory.open(tmp_path / "run").read_manifest()
    first = [p.message for p in manifest.problems if p.where == "client" and p.round == 1]
    assert [line.startswith(SAID[fault]) for line in first] == [True] * (fault in SAID)
    if ": " in bare:  # an exception, not a digest: run.json says which
        assert manifest.state == "failed"
        last = manifest.problems[-1]
        assert (last.where, last.message) == ("federation", clean_text(f"the rounds ended: {bare}"))


def test_a_client_that_never_answers_is_named(
    federate: Federate, sha256: Sha256, tmp_path: Path
) -> None:
    class Losing(OrderedGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)
            return [r for r in replies if r.metadata.src_node_id != BAD + 1]

    def losing(grid: Grid) -> Grid:
        return Losing(grid, {})

    bare = federate(FedAvg(**QUIET), wrap=losing)
    curious = CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "run")
    assert sha256(federate(curious, wrap=losing)) == sha256(bare)
    assert [p.message for p in curious.recorder.problems] == ["clients [3] never answered"] * 3


def test_all_clients_fail_and_the_model_stays(
    federate: Federate, sha256: Sha256, tmp_path: Path
) -> None:
    def client(message: Message, context: Context) -> Content:
        raise RuntimeError("strike")

    curious = CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "run")
    assert len(federate(curious, client).arrays) == len(federate(FedAvg(**QUIET), client).arrays)
    trace = Trace.open(tmp_path / "run" / "trace")
    assert [trace.round(n).aggregate for n in trace.rounds] == [None, None, None]
    assert TraceView(trace, PRESETS["curious-server"]).clients(1) == ()
    assert len(curious.recorder.problems) == 21


def test_the_disk_cap_is_said_once_and_training_goes_on(
    federate: Federate, sha256: Sha256, tmp_path: Path
) -> None:
    bare = federate(FedAvg(**QUIET))
    policy = RecordingPolicy(max_megabytes=0.0005)
    curious = CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "run", recording=policy)
    watched = federate(curious)
    assert sha256(watched) == sha256(bare)
    assert [p.message for p in curious.recorder.problems] == [
        "the cap of 0.0005 MB is reached: from here on, no client's arrays are stored, and of "
        "models at most the last"
    ]
    trace = Trace.open(tmp_path / "run" / "trace")
    assert verify_run(RunDirectory.open(tmp_path / "run")) == []
    assert sum(p.stat().st_size for p in trace.directory.rglob("*.safetensors")) <= 500
    last = trace.arrays(3, "aggregate")
    assert last is not None
    assert (np.asarray(last["w"]) == watched.arrays["w"].numpy()).all()


# -- a full disk -----------------------------------------------------------------------------------


def fill_disk(patch: pytest.MonkeyPatch, writes: range) -> None:
    """Refuse some writes of the recorder, counted from its first."""
    from fl_audit import run_directory
    from fl_audit.trace import digests, index_writer, store

    count = [0]

    def limited(real: Callable[..., None]) -> Callable[..., None]:
        def write(path: Path, data: Any) -> None:
            count[0] += 1
            if count[0] in writes:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(path, data)

        return write

    for module, name in (
        (run_directory, "write_text"),
        (digests, "write_text"),
        (index_writer, "write_text"),
        (store, "write_bytes"),
    ):
        patch.setattr(module, name, limited(getattr(module, name)))


@pytest.mark.parametrize("start", [*range(2, 20), 30, 40])
@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_a_disk_that_is_full_for_a_while_stops_no_round_and_is_said(
    start: int, length: int, federate: Federate, sha256: Sha256, tmp_path: Path
) -> None:
    bare = federate(FedAvg(**QUIET))
    curious = CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, range(start, start + length))
        assert sha256(federate(curious)) == sha256(bare)
    run = RunDirectory.open(tmp_path / "run")
    said = [p.message for p in curious.recorder.problems]
    assert any("No space left on device" in message for message in said)
    if curious.recorder.manifest != run.read_manifest():  # it was full to the very end
        assert start + length > 45
        curious.recorder.update()
    assert run.read_manifest() == curious.recorder.manifest
    assert run.read_manifest().state == "done"
    alarms = [line for line in verify_run(run) if not line.endswith("so it cannot be verified")]
    assert alarms == []
    for number in run.open_trace().rounds:  # what is there can be read
        for client in TraceView(run.open_trace(), PRESETS["curious-server"]).clients(number):
            arrays = run.open_trace().arrays(number, client)
            assert arrays is not None
            assert arrays["w"].shape == (4, 3)


def test_a_disk_that_stays_full_stops_no_round(
    federate: Federate, sha256: Sha256, tmp_path: Path
) -> None:
    bare = federate(FedAvg(**QUIET))
    curious = CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, range(1, 10_000))
        assert sha256(federate(curious)) == sha256(bare)
    said = [(p.where, p.round) for p in curious.recorder.problems]
    assert {("recording", 1), ("recording", 2), ("recording", 3), ("run.json", None)} <= set(said)

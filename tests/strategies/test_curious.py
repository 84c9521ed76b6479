"""CuriousStrategy: sees everything, changes nothing, and never stops training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy as fl
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from attacks.audit import audit_run
from attacks.requests import AttackRequest
from fl_audit.attack_spec import AttackInput, AttackSettings, AttackSpec, MembershipScores
from fl_audit.errors import InputError, RunDirectoryError
from fl_audit.records import Records
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import Observation
from fl_audit.trace import Trace, TraceWriter
from simulations.run import run_scenario
from simulations.scenario import parse_scenario
from strategies.curious import CuriousStrategy

Federate = Callable[..., Result]
Sha256 = Callable[[Result], str]
CLIP = {"noise_multiplier": 0.5, "num_sampled_clients": 7}
FIXED = {**CLIP, "clipping_norm": 0.5}
QUIET: dict[str, Any] = {"fraction_evaluate": 0.0}


def wrapped(wrapper: type[Strategy], arguments: dict[str, float]) -> Strategy:
    return wrapper(FedAvg(**QUIET), **arguments)  # type: ignore[call-arg]


STRATEGIES: dict[str, tuple[Callable[[], Strategy], list[Any]]] = {
    "FedAvg": (lambda: FedAvg(**QUIET), []),
    "FedAvg, half": (lambda: FedAvg(fraction_train=0.5, **QUIET), []),
    "FedProx": (lambda: fl.FedProx(proximal_mu=0.1, **QUIET), []),
    "FedAdam": (lambda: fl.FedAdam(**QUIET), []),
    "FedYogi": (lambda: fl.FedYogi(**QUIET), []),
    "FedAdagrad": (lambda: fl.FedAdagrad(**QUIET), []),
    "FedAvgM": (lambda: fl.FedAvgM(server_momentum=0.9, **QUIET), []),
    "FedMedian": (lambda: fl.FedMedian(**QUIET), []),
    "FedTrimmedAvg": (lambda: fl.FedTrimmedAvg(**QUIET), []),
    "Krum": (lambda: fl.Krum(num_malicious_nodes=1, **QUIET), []),
    "MultiKrum": (lambda: fl.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3, **QUIET), []),
    "Bulyan": (lambda: fl.Bulyan(num_malicious_nodes=1, **QUIET), []),
    "QFedAvg": (lambda: fl.QFedAvg(client_learning_rate=0.1, **QUIET), []),
    "server, fixed": (
        lambda: wrapped(fl.DifferentialPrivacyServerSideFixedClipping, FIXED),
        [],
    ),
    "server, adaptive": (
        lambda: wrapped(fl.DifferentialPrivacyServerSideAdaptiveClipping, CLIP),
        [],
    ),
    "client, fixed": (
        lambda: wrapped(fl.DifferentialPrivacyClientSideFixedClipping, FIXED),
        [fixedclipping_mod],
    ),
    "client, adaptive": (
        lambda: wrapped(fl.DifferentialPrivacyClientSideAdaptiveClipping, CLIP),
        [adaptiveclipping_mod],
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_is_the_same_bit_for_bit(
    name: str, federate: Federate, sha256: Sha256, tmp_path: Path
) -> None:
    build, mods = STRATEGIES[name]
    bare = federate(build(), mods=mods)
    curious = CuriousStrategy(build(), trace=tmp_path / "run")
    watched = federate(curious, mods=mods)
    assert sha256(watched) == sha256(bare)
    assert curious.recorder.problems == []
    trace = Trace.open(tmp_path / "run" / "trace")
    assert trace.rounds == (1, 2, 3)
    first, last = trace.arrays(1, "broadcast"), trace.arrays(3, "aggregate")
    assert first is not None
    assert last is not None
    assert not (np.asarray(first["w"]) == np.asarray(last["w"])).all(), "the model must change"
    assert (np.asarray(last["w"]) == watched.arrays["w"].numpy()).all()


def test_outermost_sees_updates_before_the_server_clips_them(
    federate: Federate, tmp_path: Path
) -> None:
    """Server-side wrappers overwrite replies in place: the snapshot must come first."""
    inner = wrapped(fl.DifferentialPrivacyServerSideFixedClipping, {**FIXED, "clipping_norm": 0.01})
    federate(CuriousStrategy(inner, trace=tmp_path / "run"), rounds=1)
    trace = Trace.open(tmp_path / "run" / "trace")
    before, after = trace.arrays(1, "broadcast"), trace.arrays(1, 1)
    assert before is not None
    assert after is not None
    norm = np.sqrt(sum(np.sum((after[k] - before[k]) ** 2) for k in ("w", "b")))  # type: ignore[operator]
    assert norm > 0.1


def test_replies_are_on_disk_before_the_inner_strategy_aggregates(
    federate: Federate, tmp_path: Path
) -> None:
    class Crashing(FedAvg):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        federate(CuriousStrategy(Crashing(**QUIET), trace=tmp_path / "run"))
    trace = Trace.open(tmp_path / "run" / "trace")
    assert trace.round(1).state == "replied"
    assert len(trace.round(1).replies) == 7
    assert trace.verify() == []


def test_a_recorder_that_fails_never_stops_training(
    federate: Federate, sha256: Sha256, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = federate(FedAvg(**QUIET))

    def broken(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(TraceWriter, "add_replies", broken)
    curious = CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "run")
    assert sha256(federate(curious)) == sha256(bare)
    messages = [p.message for p in RunDirectory.open(tmp_path / "run").read_manifest().problems]
    assert "recording failed: OSError: no space left on device" in messages


def test_an_attack_that_fails_never_stops_training(
    federate: Federate, sha256: Sha256, tmp_path: Path
) -> None:
    """No auxiliary records here, so the attack cannot run: it says so, and training goes on."""
    bare = federate(FedAvg(**QUIET))
    curious = CuriousStrategy(
        FedAvg(**QUIET), trace=tmp_path / "run", attacks=["label_counts"], every=1
    )
    assert sha256(federate(curious)) == sha256(bare)
    assert [p.where for p in curious.recorder.problems] == ["attack"] * 3


def test_live_attacks_give_the_offline_numbers(tmp_path: Path) -> None:
    attacks = ["row_space", "cosine", "loss_threshold"]
    tables = {"federation": {"rounds": 4}, "audit": {"attacks": attacks, "every": 2}}
    run_scenario(parse_scenario(tables), out=tmp_path / "run")
    for server_round in (2, 4):
        audit_run(tmp_path / "run", attacks=attacks, up_to=server_round, folder="offline")
        for name in attacks:
            results = tmp_path / "run" / "results"
            live = (results / "live" / f"round_{server_round:04d}" / f"{name}.json").read_text()
            assert json.loads(live) == json.loads(
                (results / "offline" / f"{name}.json").read_text()
            )


def test_unknown_attributes_come_from_the_inner_strategy(tmp_path: Path) -> None:
    curious = CuriousStrategy(FedAvg(fraction_train=0.25, **QUIET), trace=tmp_path / "run")
    assert curious.fraction_train == 0.25
    with pytest.raises(AttributeError):
        _ = curious.no_such_thing


def test_a_strategy_that_overrides_start_is_refused(tmp_path: Path) -> None:
    class Own(FedAvg):
        def start(self, *args: Any, **kwargs: Any) -> Result:
            return Result()

    with pytest.raises(InputError, match=r"overrides start\(\)"):
        CuriousStrategy(Own(**QUIET), trace=tmp_path / "run")


def test_a_directory_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(RunDirectoryError, match="not empty"):
        CuriousStrategy(FedAvg(**QUIET), trace=tmp_path)


def raising(message: Message, context: Context) -> dict[str, np.ndarray]:
    if context.node_config["partition-id"] == 2:
        raise ValueError("cannot \x1b[31mread\u202e my data")
    return _honest(message)


def sending_nan(message: Message, context: Context) -> dict[str, np.ndarray]:
    arrays = _honest(message)
    if context.node_config["partition-id"] == 2:
        arrays["w"] = np.full_like(arrays["w"], np.nan)
    return arrays


def wrong_shape(message: Message, context: Context) -> dict[str, np.ndarray]:
    arrays = _honest(message)
    if context.node_config["partition-id"] == 2:
        arrays["w"] = arrays["w"][:2]
    return arrays


def missing_key(message: Message, context: Context) -> dict[str, np.ndarray]:
    arrays = _honest(message)
    if context.node_config["partition-id"] == 2:
        del arrays["b"]
    return arrays


def _honest(message: Message) -> dict[str, np.ndarray]:
    return {k: 0.9 * v.numpy() for k, v in message.content.array_records["arrays"].items()}


@pytest.mark.parametrize("function", [raising, sending_nan])
def test_a_bad_client_is_recorded_and_the_strategy_behaves_as_ever(
    function: Callable[[Message, Context], dict[str, np.ndarray]],
    federate: Federate,
    sha256: Sha256,
    tmp_path: Path,
) -> None:
    bare = federate(FedAvg(**QUIET), function)
    curious = CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "run")
    assert sha256(federate(curious, function)) == sha256(bare)
    problems = RunDirectory.open(tmp_path / "run").read_manifest().problems
    assert [(p.where, p.round) for p in problems][:1] == [("client", 1)]
    assert "client 3" in problems[0].message  # node ids are recorded where partitions are unknown
    assert "\x1b" not in problems[0].message
    assert "\u202e" not in problems[0].message
    reply = Trace.open(tmp_path / "run" / "trace").round(1).reply(3)
    assert reply is not None
    assert (reply.error_code is not None) or not reply.is_finite


@pytest.mark.parametrize(
    ("function", "error"), [(wrong_shape, ValueError), (missing_key, InconsistentMessageReplies)]
)
def test_a_client_that_stops_the_strategy_still_stops_it_and_the_round_is_kept(
    function: Callable[[Message, Context], dict[str, np.ndarray]],
    error: type[Exception],
    federate: Federate,
    tmp_path: Path,
) -> None:
    with pytest.raises(error):
        federate(FedAvg(**QUIET), function)
    with pytest.raises(error):
        federate(CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "run"), function)
    trace = Trace.open(tmp_path / "run" / "trace")
    assert len(trace.round(1).replies) == 7
    assert trace.verify() == []


def test_run_json_says_how_the_rounds_ended(federate: Federate, tmp_path: Path) -> None:
    federate(CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "done"))
    manifest = RunDirectory.open(tmp_path / "done").read_manifest()
    assert (manifest.state, manifest.planned_rounds) == ("done", 3)
    with pytest.raises(ValueError, match="broadcast"):
        federate(CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "failed"), wrong_shape)
    assert RunDirectory.open(tmp_path / "failed").read_manifest().state == "failed"


def by_order(given: AttackInput) -> MembershipScores:
    """Scores that fall from the first candidate to the last."""
    assert given.candidates is not None
    return MembershipScores(-given.candidates.ids.astype(np.float64))


SPEC = AttackSpec("by_order", "membership", Observation.LOGITS, by_order, "https://x.org", "order")
BY_ORDER = AttackRequest("by_order", SPEC, AttackSettings())


def test_own_candidates_can_be_scored_in_a_recording(federate: Federate, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    own = Records(np.arange(6), rng.random((6, 3)).astype(np.float32), np.zeros(6, dtype=np.int64))
    member = np.arange(6) < 3
    curious = CuriousStrategy(
        FedAvg(**QUIET), trace=tmp_path / "run", candidates=own, is_member=member
    )
    federate(curious, rounds=1)
    (result,) = audit_run(tmp_path / "run", attacks=[BY_ORDER])
    assert result.record.kind == "membership"
    assert result.record.result is not None
    assert result.record.result.metrics["auc"].value == 1
    assert result.record.null is None

    federate(CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "blind", candidates=own), rounds=1)
    (result,) = audit_run(tmp_path / "blind", attacks=[BY_ORDER])
    assert result.record.kind == "membership"
    assert result.record.result is None


def test_membership_attacks_without_candidates_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs records to ask about"):
        CuriousStrategy(FedAvg(**QUIET), trace=tmp_path / "run", attacks=["row_space"], every=1)

"""The detector as a client mod in a real federation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from attacks.federated.detect import Finding, Limits
from fl_audit.errors import InputError
from fl_audit.files import Arrays
from strategies.detector import alarms, detector_mod

Federate = Callable[..., Any]


class Tampering(FedAvg):
    """Sends other models than Flower would: to everybody, or to the last node only."""

    def __init__(self, change: Callable[[dict[str, np.ndarray]], None], *, one: bool) -> None:
        super().__init__(fraction_evaluate=0.0)
        self._change, self._one = change, one
        self.errors: list[list[str]] = []

    def configure_train(self, *args: Any) -> Any:
        messages = list(super().configure_train(*args))
        server_round = args[0]
        messages.sort(key=lambda message: message.metadata.dst_node_id)  # that of partition ids
        for message in messages[-1:] if self._one else messages:
            if server_round == 1:
                continue
            arrays = {k: v.numpy() for k, v in message.content.array_records["arrays"].items()}
            self._change(arrays)
            records = dict(message.content.items())
            records["arrays"] = ArrayRecord({k: Array(v) for k, v in arrays.items()})
            message.content = RecordDict(records)
        return messages

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        self.errors.append([r.error.reason or "" for r in replies if r.has_error()])
        return super().aggregate_train(server_round, replies)


def nothing(arrays: dict[str, np.ndarray]) -> None:
    """An honest server."""


def bump(arrays: dict[str, np.ndarray]) -> None:
    arrays["b"][0] += 100


def loss(arrays: Arrays, context: Context) -> float:
    return float(np.abs(arrays["b"]).mean())


def watch(federate: Federate, strategy: FedAvg, rounds: int = 4, **options: Any) -> list[Finding]:
    found: list[Finding] = []
    federate(strategy, rounds=rounds, mods=[detector_mod(on_finding=found.append, **options)])
    return found


def test_an_honest_federation_raises_no_alarm(federate: Federate, tmp_path: Path) -> None:
    assert watch(federate, Tampering(nothing, one=False), loss=loss, board=tmp_path) == []


def test_a_loss_jump_is_warned_of_and_training_goes_on(
    federate: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = Tampering(bump, one=False)
    with caplog.at_level("WARNING", logger="fl_audit"):
        found = watch(federate, strategy, rounds=2, loss=loss)
    assert {(f.check, f.round) for f in found} == {("loss-jump", 2)}
    assert {f.client for f in found} == set(range(7))
    assert strategy.errors == [[], []]
    assert "loss-jump" in caplog.text


def test_refusing_answers_with_an_error_that_says_why(federate: Federate) -> None:
    strategy = Tampering(bump, one=False)
    watch(federate, strategy, rounds=2, loss=loss, action="refuse")
    assert strategy.errors[0] == []
    assert len(strategy.errors[1]) == 7
    assert all("refuses to train" in e and "loss-jump" in e for e in strategy.errors[1])


def test_clients_with_a_board_see_that_models_differ(federate: Federate, tmp_path: Path) -> None:
    """The odd one is named."""
    found = watch(federate, Tampering(bump, one=True), board=tmp_path, rounds=2)
    assert [(f.check, f.round, f.client) for f in found] == [("models-differ", 2, 6)]
    assert watch(federate, Tampering(bump, one=True), rounds=2) == []  # without a board: nothing


def test_what_others_write_on_the_board_cannot_hurt(federate: Federate, tmp_path: Path) -> None:
    name = "round_000001_client_99.json"
    (tmp_path / name).write_text("{not json")
    (tmp_path / "round_000001_client_98.json").symlink_to("/etc/passwd")
    (tmp_path / "round_000001_client_97.json").write_text("x" * 20_000)
    assert watch(federate, Tampering(nothing, one=False), board=tmp_path, rounds=1) == []


def test_findings_and_losses_stay_with_the_client(federate: Federate) -> None:
    seen: dict[int, list[Finding]] = {}

    def remember(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        seen[int(context.node_config["partition-id"])] = alarms(context)
        return reply

    mods = [remember, detector_mod(loss=loss)]
    federate(Tampering(bump, one=False), rounds=3, mods=mods)
    assert sorted(seen) == list(range(7))
    assert all(f and f[0].check == "loss-jump" and f[0].round == 2 for f in seen.values())


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown action 'stop'"):
        detector_mod("stop")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is no folder"):
        detector_mod(board=tmp_path / "missing")
    with pytest.raises(InputError, match=r"limits\.rows"):
        detector_mod(limits=Limits(rows=0))

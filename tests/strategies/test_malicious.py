"""The malicious server: who receives what, what is merged, and who is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.serverapp.strategy import FedAvg, Result

from attacks.federated.server_behaviours import (
    ClientSpecific,
    IsolatedAscent,
    Isolation,
    ServerBehaviour,
    ServerMeans,
    ServerTurn,
)
from fl_audit.errors import InputError, UnknownNameError
from fl_audit.files import Arrays
from fl_audit.records import Records
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Trace, TraceView
from fl_audit.trace.layout import SentTo
from simulations.adversaries import SERVER as NAMES
from simulations.client_app import shared_state
from simulations.malicious_server import _means
from simulations.run import run_scenario
from simulations.scenario import parse_scenario
from strategies.curious import CuriousStrategy
from strategies.malicious import SERVER, MaliciousStrategy

Federate = Callable[..., Result]
NOTHING = Records(np.zeros(0, np.int64), np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
MEANS = ServerMeans(model=lambda: None, targets=NOTHING, asked=None, auxiliary=NOTHING)
HERE = "tests.strategies.test_malicious"
TABLES: dict[str, Any] = {
    "federation": {"rounds": 2, "clients": 3},
    "data": {"examples_per_client": 20},
    "threat_model": {"preset": "malicious-server"},
    "adversary": {"name": "gradient_ascent", "steps": 10},
}


class Shift(ServerBehaviour):
    """Adds the client's number to every weight."""

    def send(self, turn: Any, means: ServerMeans) -> Arrays:
        return {name: array + np.float32(turn.client + 1) for name, array in turn.model.items()}


class Climb(IsolatedAscent):
    """An ascent that adds 1000 to every weight."""

    def check(self, means: ServerMeans) -> None:
        pass

    def _climb(self, base: Arrays, turn: ServerTurn, means: ServerMeans) -> Arrays:
        return {n: np.asarray(a, np.float32) + np.float32(1000) for n, a in base.items()}


class Broken(ServerBehaviour):
    """Sends what no client can load."""

    def send(self, turn: Any, means: ServerMeans) -> Arrays:
        return {"w": np.zeros(1, np.float32)}


def strategy(behaviour: ServerBehaviour) -> MaliciousStrategy:
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=7)
    return MaliciousStrategy(inner, behaviour=behaviour, means=MEANS)


def trace_of(federate: Federate, behaviour: ServerBehaviour, out: Path, *more: Any) -> Trace:
    curious = CuriousStrategy(strategy(behaviour), trace=out)
    federate(curious, *more)
    assert [p for p in curious.recorder.problems if p.where != "client"] == []
    trace = Trace.open(out / "trace")
    assert trace.verify() == []
    return trace


def failing(message: Message, context: Context) -> dict[str, np.ndarray]:
    """Client 1 fails; the others send the model they got, plus one."""
    if int(context.node_config["partition-id"]) == 1:
        raise RuntimeError("out of memory")
    arrays = message.content.array_records["arrays"]
    return {name: array.numpy() + np.float32(1) for name, array in arrays.items()}


def echo(message: Message, context: Context) -> dict[str, np.ndarray]:
    """Every client sends the model it got, plus its own number."""
    number = np.float32(int(context.node_config["partition-id"]))
    arrays = message.content.array_records["arrays"]
    return {name: array.numpy() + number for name, array in arrays.items()}


def test_victims_get_their_own_model_and_others_the_global_one(
    federate: Federate, tmp_path: Path
) -> None:
    """Nodes are not identified here, so that clients go by node id."""
    first = trace_of(federate, Shift(), tmp_path / "all").round(1)
    victim = first.sampled[2]
    trace = trace_of(federate, Shift(victims=[victim]), tmp_path / "one")
    index = trace.round(1)
    assert [entry.client for entry in index.sent] == [victim]
    broadcast, own = trace.arrays(1, "broadcast"), trace.arrays(1, SentTo(victim))
    assert broadcast is not None
    assert own is not None
    assert (np.asarray(own["w"]) == np.asarray(broadcast["w"]) + np.float32(victim + 1)).all()
    view = TraceView(trace, PRESETS["malicious-server"])
    groups = view.received_groups(1)
    assert sorted(len(clients) for _, clients in groups) == [1, 6]
    assert (np.asarray(view.received(1, victim)["w"]) == np.asarray(own["w"])).all()


def test_without_victims_nothing_changes(
    federate: Federate, sha256: Callable[[Result], str], tmp_path: Path
) -> None:
    bare = federate(FedAvg(fraction_evaluate=0.0, min_available_nodes=7))
    assert sha256(federate(strategy(Shift(victims=[10**6])))) == sha256(bare)


def test_updates_are_merged_into_the_honest_model(federate: Federate, tmp_path: Path) -> None:
    """Everybody adds one to what it got: merged as updates, the global model rises by one."""

    def plus_one(message: Message, context: Context) -> dict[str, np.ndarray]:
        arrays = message.content.array_records["arrays"]
        return {name: array.numpy() + np.float32(1) for name, array in arrays.items()}

    function = f"{HERE}:doubled"
    behaviour = ClientSpecific(function=function, merge="update")
    trace = trace_of(federate, behaviour, tmp_path / "run", plus_one)
    for number in trace.rounds:
        before, after = trace.arrays(number, "broadcast"), trace.arrays(number, "aggregate")
        assert before is not None
        assert after is not None
        np.testing.assert_allclose(
            np.asarray(after["w"], float), np.asarray(before["w"], float) + 1, atol=1e-5
        )


def doubled(server_round: int, client: int, arrays: Arrays) -> Arrays:
    """A function that a scenario may name."""
    return {name: 2 * np.asarray(array) for name, array in arrays.items()}  # type: ignore[operator]


def test_replies_can_be_left_out(federate: Federate, tmp_path: Path) -> None:
    behaviour = ClientSpecific(function=f"{HERE}:doubled", merge="leave-out")
    trace = trace_of(federate, behaviour, tmp_path / "run")
    assert trace.arrays(1, "aggregate") is None
    assert len(trace.round(1).replies) == 7


def test_an_isolated_client_gets_its_own_last_model(federate: Federate, tmp_path: Path) -> None:
    trace = trace_of(federate, Isolation(), tmp_path / "run", echo)
    assert trace.round(1).sent == []
    for client in trace.round(2).sampled:
        sent, last = trace.received(2, client), trace.arrays(1, client)
        assert sent is not None
        assert last is not None
        assert (np.asarray(sent["w"]) == np.asarray(last["w"])).all()


def test_isolated_ascent_takes_up_what_the_client_did_and_not_the_ascent(
    federate: Federate, tmp_path: Path
) -> None:
    """Each client adds its own number each round; the 1000 is in what is sent once, not again."""
    trace = trace_of(federate, Climb(), tmp_path / "run", echo)
    first = trace.arrays(1, "broadcast")
    assert first is not None
    assert len(trace.rounds) >= 3
    for number in trace.rounds:
        for client in trace.round(number).sampled:
            sent, back = trace.received(number, client), trace.arrays(number, client)
            assert sent is not None
            assert back is not None
            step = np.asarray(back["w"], float) - np.asarray(sent["w"], float)
            expected = np.asarray(first["w"], float) + 1000 + (number - 1) * step
            np.testing.assert_allclose(np.asarray(sent["w"], float), expected, atol=1e-2)


def one_weight(value: float) -> Arrays:
    return {"w": np.array([value], np.float32)}


def test_a_reply_that_never_came_leaves_the_private_copy_as_it_was() -> None:
    start, other = one_weight(1), one_weight(50)
    behaviour = Climb()

    def sent(model: Arrays, last: Arrays | None, answers: int) -> float:
        found = behaviour.send(ServerTurn(1, 0, model, last, answers), MEANS)
        return float(np.asarray(found["w"])[0])

    assert sent(start, None, 0) == 1001
    assert sent(other, None, 0) == 1050  # still no answer: from the global model
    answer = one_weight(1053)
    assert sent(other, answer, 1) == 1053  # the client did +3
    assert sent(start, answer, 1) == 1053  # no reply to the last model
    assert sent(start, one_weight(1055), 2) == 1055  # and +2
    assert sent(start, None, 0) == 1001  # a new run


def test_a_client_that_failed_is_sent_the_global_model(federate: Federate, tmp_path: Path) -> None:
    trace = trace_of(federate, Isolation(), tmp_path / "run", failing)
    failed = [r.client for r in trace.round(2).replies if r.error_code is not None]
    assert len(failed) == 1
    assert trace.round(2).sent_to(failed[0]) is None
    # the others sent one model, so it is stored once
    stored = list((tmp_path / "run" / "trace" / "round_0002").glob("sent_*.safetensors"))
    assert len(stored) <= 1


def test_a_model_that_clients_cannot_load_ends_the_run(federate: Federate) -> None:
    with pytest.raises(InputError, match="global model's names and shapes"):
        federate(strategy(Broken()))


def test_client_specific_needs_a_function() -> None:
    for path, match in (("", "must read"), (f"{HERE}:nope", "cannot be imported")):
        with pytest.raises(InputError, match=match):
            strategy(ClientSpecific(function=path))
    with pytest.raises(InputError, match="is no function"):
        strategy(ClientSpecific(function=f"{HERE}:HERE"))


def nothing(server_round: int, client: int, arrays: Arrays) -> None:
    """Changes its arguments and forgets to return them."""


def two_parameters(server_round: int, client: int) -> Arrays:
    return {}


def lists(server_round: int, client: int, arrays: Arrays) -> dict[str, Any]:
    return {name: array.tolist() for name, array in arrays.items()}


def broken(server_round: int, client: int, arrays: Arrays) -> Arrays:
    return arrays.nope  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nothing", "must return arrays by name.*round 1 it returned a NoneType"),
        ("two_parameters", "is called with .round, client, arrays."),
        ("lists", "it returned a list under 'w'"),
        ("broken", "it failed for client .* in round 1: AttributeError"),
    ],
)
def test_a_function_that_is_wrong_is_named(name: str, match: str, federate: Federate) -> None:
    with pytest.raises(InputError, match=match) as caught:
        federate(strategy(ClientSpecific(function=f"{HERE}:{name}")))
    assert "adversary.function" in str(caught.value)


def means_of(**changes: Any) -> ServerMeans:
    scenario = parse_scenario({**TABLES, **changes})
    _, population, model = shared_state(scenario.model_dump_json())
    return _means(scenario, population.game, model)


def test_a_server_has_auxiliary_records_only_if_it_is_granted_them() -> None:
    knows = ["labels"]
    granted = {"preset": "malicious-server", "knows": [*knows, "auxiliary-data"]}
    assert len(means_of(threat_model=granted).auxiliary) > 0
    refused = {"preset": "malicious-server", "knows": knows}
    assert len(means_of(threat_model=refused).auxiliary) == 0


def test_names_are_those_of_the_scenario() -> None:
    assert {n: f"{c.__module__}:{c.__name__}" for n, c in SERVER.items()} == NAMES


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"adversary": {"name": "gradient_acsent"}}, "Did you mean 'gradient_ascent'"),
        ({"threat_model": {"preset": "curious-server"}}, "malicious-server"),
        ({"adversary": {"name": "isolation", "rate": 1}}, "adversary.rate = 1: unknown setting"),
        ({"adversary": {"name": "gradient_ascent", "rate": 0}}, "adversary.rate = 0"),
        ({"adversary": {"name": "isolation", "victims": [9]}}, "clients are 0 to 2"),
        ({"adversary": {"name": "isolation", "clients": [0]}}, "acts through no client"),
        ({"adversary": {"name": "relu_trap", "traps": 999}}, "has 128 neurons"),
        ({"adversary": {"name": "relu_trap"}, "game": {"auxiliary": 0}}, "game. auxiliary = 100"),
        ({"adversary": {"name": "isolation", "position": "inside"}}, "adversary.position"),
        ({"adversary": {"name": "none", "position": "inside"}}, "adversary.position"),
        (
            {"threat_model": {"preset": "malicious-server", "knows": []}},
            "'gradient_ascent'.*needs labels",
        ),
        (
            {
                "threat_model": {"preset": "malicious-server", "knows": ["labels"]},
                "adversary": {"name": "relu_trap"},
            },
            "'relu_trap'.*needs auxiliary-data",
        ),
        ({"adversary": {"name": "none", "rate": 1}}, "takes no settings"),
        (
            {"adversary": {"name": "relu_trap"}, "model": {"name": "convnet"}},
            "first layer is not a dense layer",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_round(
    change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=match):
        run_scenario(parse_scenario({**TABLES, **change}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_names_have_their_own_error(tmp_path: Path) -> None:
    scenario = parse_scenario({**TABLES, "adversary": {"name": "x"}})
    with pytest.raises(UnknownNameError):
        run_scenario(scenario, out=tmp_path / "run")


def test_same_seed_same_bytes_and_resuming_replays_what_was_sent(tmp_path: Path) -> None:
    tables = {**TABLES, "federation": {"rounds": 3, "clients": 3, "fraction": 0.7}}
    scenario = parse_scenario({**tables, "adversary": {"name": "isolated_ascent", "steps": 5}})
    first = run_scenario(scenario, out=tmp_path / "one")
    again = run_scenario(scenario, out=tmp_path / "two")
    assert first.trace is not None
    assert again.trace is not None
    assert first.trace.digest == again.trace.digest
    run = RunDirectory.open(tmp_path / "two")
    run.write_manifest(run.read_manifest().model_copy(update={"state": "interrupted"}))
    resumed = run_scenario(scenario, out=tmp_path / "two", resume=True)
    assert resumed.trace == first.trace
    assert run.open_trace().verify() == []

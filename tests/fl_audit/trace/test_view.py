"""A view gives what the threat model grants, names what it lacks, and hides what is unusable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_audit.errors import InputError, ObservationError, TraceError
from fl_audit.local_training import LocalTraining, LocalTrainings
from fl_audit.threat_model import PRESETS, Knowledge, Observation, ThreatModel
from fl_audit.trace import Reply, Trace, TraceView, TraceWriter

Model = Callable[[int], dict[str, np.ndarray]]
Access = Callable[[TraceView], Any]
O, K = Observation, Knowledge  # noqa: E741
ALL_SEEN, ALL_KNOWN = ~O(0), ~K(0)
INPUTS = np.array([[1, 2], [3, 4]], dtype=np.float32)


class Affine(torch.nn.Module):
    """The model that the trace's arrays belong to: three classes, two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(3, 2))
        self.b = torch.nn.Parameter(torch.zeros(3))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.w.T + self.b


def view_of(
    directory: Path, sees: Observation = ALL_SEEN, knows: Knowledge = ALL_KNOWN, **options: Any
) -> TraceView:
    options = {"model": Affine, "local_training": LocalTrainings(), **options}
    threat_model = ThreatModel("server", sees=sees, knows=knows)
    return TraceView(Trace.open(directory), threat_model, **options)


# name: (access, the flags that grant it, everything else that does not imply them)
NEEDS: dict[str, tuple[Access, Observation, Observation, str]] = {
    "clients": (
        lambda view: view.clients(1),
        O.CLIENT_UPDATES,
        ALL_SEEN & ~O.CLIENT_UPDATES,
        "client-updates",
    ),
    "unusable": (
        lambda view: view.unusable,
        O.CLIENT_UPDATES,
        ALL_SEEN & ~O.CLIENT_UPDATES,
        "client-updates",
    ),
    "client_model": (
        lambda view: view.client_model(1, 0),
        O.CLIENT_UPDATES,
        ALL_SEEN & ~O.CLIENT_UPDATES,
        "client-updates",
    ),
    "client_update, without replies": (
        lambda view: view.client_update(1, 0),
        O.CLIENT_UPDATES | O.GLOBAL_MODEL,
        ALL_SEEN & ~O.CLIENT_UPDATES,
        "client-updates",
    ),
    "client_update, without the model": (
        lambda view: view.client_update(1, 0),
        O.CLIENT_UPDATES | O.GLOBAL_MODEL,
        ALL_SEEN & ~O.GLOBAL_MODEL,
        "global-model",
    ),
    "global_model": (
        lambda view: view.global_model(1),
        O.GLOBAL_MODEL,
        ALL_SEEN & ~O.GLOBAL_MODEL,
        "global-model",
    ),
    "aggregate": (
        lambda view: view.aggregate(1),
        O.AGGREGATE,
        ALL_SEEN & ~(O.CLIENT_UPDATES | O.AGGREGATE),
        "aggregate",
    ),
    "final_model": (
        lambda view: view.final_model(),
        O.FINAL_MODEL,
        ALL_SEEN & ~(O.GLOBAL_MODEL | O.FINAL_MODEL),
        "final-model",
    ),
    "architecture": (
        lambda view: view.architecture(),
        O.FINAL_MODEL,
        ALL_SEEN & ~(O.GLOBAL_MODEL | O.FINAL_MODEL),
        "final-model",
    ),
    "query": (
        lambda view: view.query(INPUTS),
        O.LOGITS,
        ALL_SEEN & ~(O.GLOBAL_MODEL | O.FINAL_MODEL | O.LOGITS),
        "logits",
    ),
}
KNOWS: dict[str, tuple[Access, Knowledge, str]] = {
    "num_examples": (
        lambda view: view.num_examples(1, 0),
        K.EXAMPLE_COUNTS,
        "example-counts",
    ),
    "local_training": (
        lambda view: view.local_training(0),
        K.LOCAL_TRAINING,
        "local-training",
    ),
}


@pytest.mark.parametrize("name", NEEDS)
def test_what_is_not_seen_is_refused_by_name(name: str, trace_directory: Path) -> None:
    access, granting, others, missing = NEEDS[name]
    access(view_of(trace_directory, sees=granting, knows=K(0)))
    with pytest.raises(ObservationError, match=f"does not grant {missing}"):
        access(view_of(trace_directory, sees=others))


@pytest.mark.parametrize("name", KNOWS)
def test_what_is_not_known_is_refused_by_name(name: str, trace_directory: Path) -> None:
    access, granting, missing = KNOWS[name]
    access(view_of(trace_directory, sees=O(0), knows=granting))
    with pytest.raises(ObservationError, match=f"does not grant {missing}"):
        access(view_of(trace_directory, knows=ALL_KNOWN & ~granting))


@pytest.mark.parametrize(
    ("sees", "accessors"),
    [
        (O.CLIENT_UPDATES, ["clients", "unusable", "client_model", "aggregate"]),
        (O.GLOBAL_MODEL, ["global_model", "final_model", "architecture", "query"]),
        (O.FINAL_MODEL, ["final_model", "architecture", "query"]),
        (O.LOGITS, ["query"]),
        (O.LABELS_ONLY | O.SYNTHETIC_TABLE, []),
    ],
)
def test_one_sight_implies_another(
    sees: Observation, accessors: list[str], trace_directory: Path
) -> None:
    view = view_of(trace_directory, sees=sees)
    granted = []
    for name, (access, *_) in NEEDS.items():
        try:
            access(view)
            granted.append(name)
        except ObservationError:
            pass
    assert granted == [name for name in NEEDS if name in accessors]


def test_secure_aggregation_hides_single_clients(trace_directory: Path) -> None:
    view = TraceView(Trace.open(trace_directory), PRESETS["secure-aggregation-server"])
    assert view.aggregate(1) is not None
    with pytest.raises(ObservationError, match="client-updates"):
        view.clients(1)


# -- replies -------------------------------------------------------------------------------------


def test_unusable_replies_are_left_out_and_explained(trace_directory: Path) -> None:
    view = view_of(trace_directory)
    assert view.clients(1) == (0, 1, 2, 3, 4)
    assert view.clients(2) == (4,)
    assert view.unusable == [
        "round 2, client 0: the client failed (out of memory)",
        "round 2, client 1: its arrays hold NaN or infinite values",
        "round 2, client 2: its arrays do not have the model's names and shapes",
        "round 2, client 3: it sent no arrays",
    ]


@pytest.mark.parametrize(
    ("client", "why"),
    [
        (0, "the client failed"),
        (1, "NaN"),
        (2, "names and shapes"),
        (3, "no arrays"),
        (9, "no arrays"),
    ],
)
def test_an_unusable_reply_gives_no_update(client: int, why: str, trace_directory: Path) -> None:
    with pytest.raises(TraceError, match=why):
        view_of(trace_directory).client_update(2, client)


def test_an_unusable_reply_can_be_looked_at(trace_directory: Path) -> None:
    assert np.isnan(view_of(trace_directory).client_model(2, 1)["w"]).all()


def test_an_update_is_client_minus_global(trace_directory: Path, make_model: Model) -> None:
    update = view_of(trace_directory).client_update(1, 3)
    assert sorted(update) == ["b", "w"]  # counters are left out
    assert len(update) == 2
    for name in update:
        expected = make_model(13)[name].astype(np.float64) - make_model(0)[name]
        assert update[name].dtype == np.float64
        assert (update[name] == expected).all()
    with pytest.raises(KeyError):
        update["steps"]


@pytest.mark.parametrize(
    "count", [0, -1, -0.5, 2**63, 10**400, 1e300, "nan", "many", [40], None, True]
)
def test_an_impossible_count_is_refused(count: object, trace_directory: Path) -> None:
    index = trace_directory / "round_0001" / "round.json"
    content = json.loads(index.read_text())
    content["replies"][2]["num_examples"] = "True" if count is True else count
    index.write_text(json.dumps(content))
    view = view_of(trace_directory)
    assert view.num_examples(1, 1) == 41
    with pytest.raises(InputError, match="num-examples of client 2 in round 1"):
        view.num_examples(1, 2)


def test_a_client_that_never_replied_has_no_count(trace_directory: Path) -> None:
    with pytest.raises(InputError, match="num-examples of client 9 in round 1"):
        view_of(trace_directory).num_examples(1, 9)


# -- rounds --------------------------------------------------------------------------------------


def test_rounds_after_the_last_visible_one_are_hidden(
    trace_directory: Path, make_model: Model
) -> None:
    view = view_of(trace_directory, up_to=1)
    assert view.rounds == (1,)
    assert view.unusable == []
    assert (view.final_model()["w"] == make_model(1)["w"]).all()
    for access in (
        lambda: view.clients(2),
        lambda: view.global_model(2),
        lambda: view.client_model(2, 4),
        lambda: view.client_update(2, 4),
        lambda: view.aggregate(2),
        lambda: view.num_examples(2, 4),
    ):
        with pytest.raises(TraceError, match=r"round = 2: .* Rounds in view: \[1\]"):
            access()


def test_a_view_of_no_round_is_refused(trace_directory: Path, tmp_path: Path) -> None:
    TraceWriter(tmp_path / "empty")
    for directory, up_to in ((trace_directory, 0), (tmp_path / "empty", None)):
        with pytest.raises(TraceError, match="no round was recorded"):
            view_of(directory, up_to=up_to)


def test_a_round_that_kept_the_old_model_leaves_it_final(
    trace_directory: Path, make_model: Model
) -> None:
    view = view_of(trace_directory)
    assert view.aggregate(2) is None
    assert (view.final_model()["w"] == make_model(1)["w"]).all()


def test_before_any_aggregate_the_broadcast_is_final(tmp_path: Path, make_model: Model) -> None:
    writer = TraceWriter(tmp_path)
    writer.begin_round(1, make_model(5), [0])
    writer.add_replies(1, [Reply(0, make_model(6))])
    assert (view_of(tmp_path).final_model()["w"] == make_model(5)["w"]).all()


# -- model and training ----------------------------------------------------------------------------


def test_a_query_gives_the_final_models_logits(trace_directory: Path, make_model: Model) -> None:
    final = make_model(1)
    expected = INPUTS @ final["w"].T + final["b"]
    found = view_of(trace_directory).query(INPUTS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_without_an_architecture_nothing_can_be_queried(trace_directory: Path) -> None:
    view = view_of(trace_directory, model=None)
    with pytest.raises(InputError, match="Name a factory"):
        view.architecture()
    with pytest.raises(InputError, match="Name a factory"):
        view.query(INPUTS)


def test_arrays_that_do_not_fit_the_architecture_are_named(trace_directory: Path) -> None:
    view = view_of(trace_directory, model=lambda: torch.nn.Linear(2, 3))
    with pytest.raises(InputError, match="array 'weight' = None: the model needs shape"):
        view.query(INPUTS)


def test_local_training_is_the_clients_own(trace_directory: Path) -> None:
    slow = LocalTraining(learning_rate=0.01)
    view = view_of(trace_directory, local_training=LocalTrainings(clients={3: slow}))
    assert view.local_training(3) == slow
    assert view.local_training(4) == LocalTraining()
    with pytest.raises(InputError, match="did not record how its clients train"):
        view_of(trace_directory, local_training=None).local_training(0)

"""Embedding rows: the tokens of the data are read off exactly, and say who was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attacks.audit import audit_run
from attacks.federated.embedding_rows import coverage, embedding_rows_scores, rarity, token_table
from attacks.federated.embeddings import (
    find_embedding,
    fitted_row_multiple,
    moved_rows,
    present_tokens,
)
from fl_audit.errors import InputError, ObservationError
from fl_audit.game import read_game
from fl_audit.local_training import LocalTraining, LocalTrainings
from fl_audit.records import Records
from fl_audit.results import MembershipResult
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS, ThreatModel, parse_observations
from fl_audit.trace import Reply, Trace, TraceView, TraceWriter
from simulations.population import build_population
from simulations.scenario import load_scenario
from tests.text_federation import PADDING, VOCABULARY, mean_of_embeddings

SEED = 20_261_125
NAME = "embedding.weight"
Run = Callable[..., Path]
TEXT: dict[str, Any] = {
    "federation": {"rounds": 1},
    "data": {"name": "tests.text_federation:sequences"},
    "model": {"name": "tests.text_federation:mean_of_embeddings"},
}


def build() -> torch.nn.Module:
    return mean_of_embeddings(input_shape=[12], num_classes=4)


def records(tokens: list[list[int]]) -> Records:
    inputs = np.array(tokens, dtype=np.float32)
    return Records(np.arange(len(inputs)), inputs, np.zeros(len(inputs), dtype=np.int64))


def truth(run: Path, clients: list[int]) -> NDArray[np.int64]:
    """Tokens that really occur in the clients' data."""
    held = build_population(load_scenario(run / "scenario.toml")).clients
    tokens = np.unique(np.concatenate([held[client].inputs.ravel() for client in clients]))
    return tokens[tokens != PADDING].astype(np.int64)


def seen(run: Path, preset: str, local: LocalTrainings | None = None) -> TraceView:
    trace = RunDirectory.open(run).open_trace()
    return TraceView(trace, PRESETS[preset], model=build, local_training=local)


def test_the_tokens_of_each_client_are_read_off(text_run: Path) -> None:
    found = present_tokens(seen(text_run, "curious-server"))
    assert sorted(found) == [(r, c) for r in (1, 2) for c in range(5)]
    for (_, client), tokens in found.items():
        np.testing.assert_array_equal(tokens, truth(text_run, [client]))


def test_the_tokens_of_all_clients_are_read_off_the_sum(text_run: Path) -> None:
    found = present_tokens(seen(text_run, "secure-aggregation-server"))
    assert sorted(found) == [(1, -1), (2, -1)]
    for tokens in found.values():
        np.testing.assert_array_equal(tokens, truth(text_run, list(range(5))))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weight_decay_is_taken_out_known_or_not(momentum: float, run_tables: Run) -> None:
    training = {"weight_decay": 5e-4, "momentum": momentum}
    run = run_tables("text-decay", **TEXT, training=training)
    known = LocalTrainings(default=LocalTraining.model_validate(training))
    wrong = LocalTrainings(default=LocalTraining(weight_decay=0.1))
    for local in (known, wrong, None):
        for (_, client), tokens in present_tokens(seen(run, "curious-server", local)).items():
            np.testing.assert_array_equal(tokens, truth(run, [client]))
        (tokens,) = present_tokens(seen(run, "curious-client", local)).values()
        np.testing.assert_array_equal(tokens, truth(run, list(range(5))))


@pytest.mark.parametrize("seat", ["curious-server", "secure-aggregation-server"])
def test_members_stand_out(seat: str, run_tables: Run) -> None:
    run = run_tables("text-seat", **TEXT, threat_model={"preset": seat})
    (result,) = audit_run(run, attacks=["embedding_rows"], trust_model=True)
    assert isinstance(result, MembershipResult), result.record
    assert result.record.result is not None
    assert result.record.result.metrics["auc"].value >= 0.9  # 0.95 to 1.00 over seeds 0-4
    assert result.is_member is not None
    assert (result.scores[result.is_member] == 1).all()  # none of a member's tokens is missing
    assert any(note.endswith("tokens are present in an update (2000 known).")
               for note in result.record.notes)  # fmt: skip


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_rows_of_absent_tokens_stay_under_any_optimizer(optimizer: str) -> None:
    """Of AdamW the rows decay by a multiple, which is fitted."""
    torch.manual_seed(SEED)
    model = build()
    before = model.state_dict()[NAME].numpy().copy()
    parameters = list(model.parameters())
    kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1),
        "momentum": lambda: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "adam": lambda: torch.optim.Adam(parameters, lr=1e-2),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    }
    step = kinds[optimizer]()
    inputs = torch.tensor([[3.0, 5.0, 5.0, 0.0], [7.0, 3.0, 11.0, 0.0]])
    for _ in range(5):
        step.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), torch.tensor([1, 2])).backward()
        step.step()
    update = model.state_dict()[NAME].numpy().astype(np.float64) - before
    multiple = fitted_row_multiple(update, before)
    expected = (1 - 1e-3) ** 5 - 1 if optimizer == "adamw" else 0
    assert multiple == pytest.approx(expected, abs=1e-6)
    moved = moved_rows(update, before, expected, exact=optimizer != "adamw")
    assert np.flatnonzero(moved).tolist() == [3, 5, 7, 11]


def test_coverage_is_the_weighted_share_of_different_tokens() -> None:
    held = token_table(records([[1, 1, 2, 0], [3, 3, 3, 3], [0, 0, 0, 0]]), 5, padding=0)
    present = np.array([False, True, False, True, True])
    weights = np.array([9.0, 1.0, 3.0, 2.0, 2.0])
    np.testing.assert_allclose(coverage(held, present, weights), [0.25, 1.0, 0.0])


def test_rare_tokens_weigh_more() -> None:
    auxiliary = records([[1, 2], [1, 3], [1, 1]])
    np.testing.assert_allclose(
        rarity(auxiliary, 5, None), 1 + np.log(4 / (1 + np.array([0, 3, 1, 1, 0])))
    )
    np.testing.assert_array_equal(rarity(None, 5, None), np.ones(5))


def hand_made(
    folder: Path, changes: list[dict[int, float] | float], threat: ThreatModel | None = None
) -> TraceView:
    """One round in which client i moves the rows of changes[i], or all by noise of that size."""
    rng = np.random.default_rng(SEED)
    model = {name: value.numpy().copy() for name, value in build().state_dict().items()}
    replies = []
    for client, change in enumerate(changes):
        own = {name: value.copy() for name, value in model.items()}
        if isinstance(change, float):
            own[NAME] += rng.normal(0, change, own[NAME].shape).astype(np.float32)
        else:
            for token, by in change.items():
                own[NAME][token] += np.float32(by)
        replies.append(Reply(client, own, {"num-examples": 3}))
    writer = TraceWriter(folder)
    writer.begin_round(1, model, list(range(len(changes))))
    writer.add_replies(1, replies)
    writer.end_round(1, model, {})
    writer.close()
    return TraceView(Trace.open(folder), threat or PRESETS["curious-server"], model=build)


def test_updates_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    """One client moves two rows, one nothing, one adds noise: only the first is scored."""
    view = hand_made(tmp_path / "trace", [{4: 0.1, 6: -0.1}, {}, 0.01])
    assert {key: list(t) for key, t in present_tokens(view).items()} == {(1, 0): [4, 6]}
    scores = embedding_rows_scores(view, records([[4, 6, 4, 0], [4, 7, 8, 9], [1, 2, 3, 5]]))
    np.testing.assert_allclose(scores, [1.0, 0.25, 0.0])


@pytest.mark.parametrize("change", [{}, 0.01])
def test_nothing_but_such_updates_is_no_signal(change: Any, tmp_path: Path) -> None:
    view = hand_made(tmp_path / "trace", [change])
    with pytest.raises(InputError, match="so there is no signal"):
        embedding_rows_scores(view, records([[1, 2]]))


@pytest.mark.parametrize("token", [0.5, -1.0, float(VOCABULARY), float("nan")])
def test_what_is_no_token_is_refused(token: float, tmp_path: Path) -> None:
    view = hand_made(tmp_path / "trace", [{4: 0.1}])
    bad = Records(np.arange(2), np.array([[1, 2], [3, token]], np.float32), np.zeros(2, np.int64))
    with pytest.raises(InputError, match=r"input 1 of record row 1 .*is no token"):
        embedding_rows_scores(view, bad)


def test_a_model_without_the_embedding_is_refused(tmp_path: Path, hand: Any) -> None:
    view = hand_made(tmp_path / "trace", [{4: 0.1}])
    assert find_embedding(view).name == find_embedding(view, NAME).name == NAME
    assert find_embedding(view).padding == PADDING
    with pytest.raises(InputError, match=r"not the weight of an embedding.*embedding\.weight"):
        find_embedding(view, "head.weight")
    rng = np.random.default_rng(SEED)
    model = hand.weights(rng=rng)
    dense = hand.view(tmp_path / "dense", [(model, {0: model}, model)])
    with pytest.raises(InputError, match=r"has no embedding.*row_space"):
        embedding_rows_scores(dense, hand.records(3, rng=rng))


@pytest.mark.parametrize(
    ("sees", "missing"), [(["final-model"], "global-model"), (["global-model"], "aggregate")]
)
def test_a_view_without_updates_names_what_is_missing(
    sees: list[str], missing: str, tmp_path: Path
) -> None:
    threat = ThreatModel("observer", sees=parse_observations(sees))
    view = hand_made(tmp_path / "trace", [{4: 0.1}], threat)
    with pytest.raises(ObservationError, match=missing):
        present_tokens(view)


def test_clients_that_are_away_are_no_error(run_tables: Run) -> None:
    """Two of five clients a round, and a lot of drop-outs."""
    tables = {**TEXT, "federation": {"rounds": 4, "fraction": 0.4}}
    run = run_tables("text-away", **tables, faults={"drop_out": 0.3})
    found = present_tokens(seen(run, "curious-server"))
    assert 0 < len(found) < 8
    for (_, client), tokens in found.items():
        np.testing.assert_array_equal(tokens, truth(run, [client]))
    candidates = read_game(RunDirectory.open(run)).candidates
    scores = embedding_rows_scores(seen(run, "curious-server"), candidates)
    assert ((scores >= 0) & (scores <= 1)).all()

"""Shadow federations: how records are dealt, what is kept, and what learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.audit import audit_run
from attacks.federated.rehearsal import Rehearsals, deal
from fl_audit.errors import InputError
from fl_audit.game import read_game
from fl_audit.records import Records
from fl_audit.results import MembershipResult
from fl_audit.run_directory import RunDirectory
from fl_audit.trace import TraceView
from simulations.rehearsals import run_rehearser

SEED = 20_261_125


class Dealer:
    """Spreads evenly and never plays."""

    key = "dealer"
    description = "a dealer's"

    def __init__(self, total: int, num_clients: int) -> None:
        self.total, self.num_clients = total, num_clients

    def spread(self, labels: Any, *, rng: np.random.Generator) -> list[Any]:
        return list(np.array_split(rng.permutation(len(labels)), self.num_clients))

    def play(self, clients: Sequence[Records], *, seed: int, folder: Path) -> None:
        raise AssertionError("nothing is played here")


def dealt(asked: Any, *, total: int = 30, own: int = 40, n: int = 60) -> tuple[Any, Any]:
    rng = np.random.default_rng(SEED)
    labels, spare = np.zeros(n, np.int64), np.zeros(own, np.int64)
    return deal(Dealer(total, 3), labels, spare, asked=asked, rng=rng)


def test_half_of_the_candidates_at_most_are_trained_on() -> None:
    clients, is_member = dealt(None, total=50)
    assert is_member.sum() == 30  # of 60
    assert sum(len(rows) for rows in clients) == 50
    rows = np.concatenate(clients)
    assert len(set(rows.tolist())) == 50
    np.testing.assert_array_equal(np.sort(rows[rows < 60]), np.flatnonzero(is_member))


def test_a_candidate_comes_only_to_the_client_it_is_asked_about() -> None:
    asked = np.repeat([0, 1, 2], 20)
    clients, is_member = dealt(asked)
    for client, rows in enumerate(clients):
        assert len(rows) == 10
        assert (asked[rows[rows < 60]] == client).all()
    assert 0 < is_member.sum() <= 30


def test_clients_without_any_record_are_refused() -> None:
    with pytest.raises(InputError, match=r"game\.auxiliary"):
        dealt(np.zeros(60, np.int64), own=0)


def rehearsals(run: Path, folder: Path | None) -> Rehearsals:
    opened = RunDirectory.open(run)
    game, manifest = read_game(opened), opened.read_manifest()
    rehearser = run_rehearser(opened, trusted=False)
    assert rehearser is not None
    model = manifest.threat_model.threat_model()
    return Rehearsals(
        rehearser,
        game.candidates,
        asked=None,
        auxiliary=game.auxiliary,
        view_of=lambda trace: TraceView(trace, model),
        seed=7,
        folder=folder,
    )


def test_they_are_kept_and_repeatable(small_federation: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    first = rehearsals(small_federation, folder)(2)
    assert [r.view.rounds for r in first] == [(1, 2, 3)] * 2
    assert not np.array_equal(first[0].is_member, first[1].is_member)
    written = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    again = rehearsals(small_federation, folder)(2)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == written
    away = rehearsals(small_federation, None)  # its folder lives as long as it does
    elsewhere = away(2)[0]
    for rehearsal in (again[0], elsewhere):
        np.testing.assert_array_equal(rehearsal.is_member, first[0].is_member)
        a, b = (r.view.client_model(3, 2) for r in (first[0], rehearsal))
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_one_that_was_killed_is_played_again(small_federation: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    rehearsals(small_federation, folder)(2)
    killed = sorted(folder.iterdir())[0]
    (killed / "done").unlink()
    rehearsals(small_federation, folder)(2)
    assert (killed / "done").is_file()


def test_fewer_than_two_are_refused(small_federation: Path) -> None:
    with pytest.raises(InputError, match="must be at least 2"):
        rehearsals(small_federation, None)(1)


@pytest.mark.parametrize(
    "attack",
    [
        {"name": "trajectory", "fit": "shadow", "num_shadow_federations": 2},
        {"name": "local_trajectory", "fit": "shadow", "num_shadow_federations": 2},
        {
            "name": "federated_stacking",
            "num_shadow_federations": 2,
            "attacks": ["cosine", {"name": "fedmia", "statistic": "loss"}],
        },
        {
            "name": "federated_stacking",
            "num_shadow_federations": 2,
            "combine": "best",
            "attacks": ["cosine", "loss_series"],
        },
    ],
)
def test_learning_from_shadow_federations(small_federation: Path, attack: dict[str, Any]) -> None:
    rehearser = run_rehearser(RunDirectory.open(small_federation), trusted=False)
    first, again = (
        audit_run(small_federation, attacks=[attack], rehearser=rehearser)[0] for _ in range(2)
    )
    assert isinstance(first, MembershipResult), first.record
    assert isinstance(again, MembershipResult)
    assert first.scores.tobytes() == again.scores.tobytes()
    assert first.record.result is not None
    assert first.record.result.metrics["auc"].low > 0.5  # three sigma and more at this seed
    assert any("shadow federations" in note for note in first.record.notes)


def test_a_trace_that_cannot_be_played_again_says_so(small_federation: Path) -> None:
    (result,) = audit_run(small_federation, attacks=[{"name": "trajectory", "fit": "shadow"}])
    assert result.record.kind == "unavailable"
    assert "how to play its federation again" in result.record.reason  # type: ignore[union-attr]

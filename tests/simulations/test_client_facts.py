"""What is counted at run start, against a count by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attacks.requests import parse_attacks
from fl_audit.errors import TraceError
from fl_audit.game import read_game, read_truth, write_game
from fl_audit.run_directory import RunDirectory
from simulations.client_facts import with_client_facts
from simulations.population import build_population
from simulations.scenario import parse_scenario


def test_label_counts_are_those_of_what_clients_train_on() -> None:
    """After the lots: the anchor of a group may have been exchanged for its partner."""
    population = build_population(parse_scenario({"partition": {"kind": "dirichlet"}}))
    counts = with_client_facts(population, []).truth.client_labels
    assert counts is not None
    assert counts.shape == (5, 10)
    for client, records in enumerate(population.clients):
        assert counts[client].tolist() == [int((records.labels == c).sum()) for c in range(10)]


def test_only_functions_that_are_named_are_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "half_dark.py").write_text(
        "def dark(records):\n    return records.inputs.mean(axis=(1, 2, 3)) < 0.3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    population = build_population(parse_scenario({}))
    wanted = [
        {"name": "property_inference", "property": "half_dark:dark"},
        {"name": "property_inference", "property": "class:2"},
        "cosine",
    ]
    shares = with_client_facts(population, parse_attacks(wanted)).truth.property_shares
    assert list(shares) == ["half_dark:dark"]
    expected = [(c.inputs.mean(axis=(1, 2, 3)) < 0.3).mean() for c in population.clients]
    np.testing.assert_allclose(shares["half_dark:dark"], expected)


def test_they_stand_in_the_truth_of_a_run(digits_run: Path) -> None:
    truth = read_truth(RunDirectory.open(digits_run))
    assert truth.client_labels is not None
    assert truth.client_labels.sum(axis=1).tolist() == [40] * 5


def test_damaged_counts_are_refused(digits_run: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    truth = read_truth(RunDirectory.open(digits_run))
    game = read_game(RunDirectory.open(digits_run))
    write_game(run, game, replace(truth, client_labels=np.array([[-1, 2]])))
    with pytest.raises(TraceError, match="client_labels"):
        read_truth(run)
    write_game(run, game, replace(truth, client_labels=None))  # a run of an older version
    assert read_truth(run).client_labels is None

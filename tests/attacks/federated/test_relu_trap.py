"""ReLU trap, read from a trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attacks.audit import audit_run
from attacks.federated.relu_trap import relu_trap_scores
from fl_audit.errors import InputError
from fl_audit.game import read_game
from fl_audit.results import MembershipResult
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Trace, TraceView


def test_a_scenario_tells_nearly_all_members_from_non_members(trap_run: Path) -> None:
    (result,) = audit_run(trap_run, attacks=["relu_trap"])
    assert isinstance(result, MembershipResult), result.record
    assert result.is_member is not None
    assert result.record.activity == "malicious"  # the report's "Who" rests on it
    told = (result.scores > 0.995) == result.is_member
    assert told.mean() > 0.95


def test_a_trace_without_traps_is_refused(digits_run: Path) -> None:
    view = TraceView(Trace.open(digits_run / "trace"), PRESETS["malicious-server"])
    candidates = read_game(RunDirectory.open(digits_run)).candidates
    with pytest.raises(InputError, match="no client received a model with a trap"):
        relu_trap_scores(view, candidates)


def test_candidates_without_a_trap_are_named_and_undecided(trap_run: Path) -> None:
    """One round reaches a sixth of the targets."""
    view = TraceView(Trace.open(trap_run / "trace"), PRESETS["malicious-server"])
    game = read_game(RunDirectory.open(trap_run))
    scores, notes = relu_trap_scores(view, game.candidates, asked=game.asked, rounds=[1])
    assert np.mean(scores == 0.5) > 0.5
    assert "had no trap" in notes[0]

"""Null and positive tests of attacks on traces, so that a new attack cannot skip them.

Candidates that were never trained on must look alike to every membership attack: the interval of
the AUC contains 0.5 at level 1e-6 divided by the number of registered attacks (false-failure rate
of the whole file over fresh seeds: at most 1e-6).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attacks.audit import audit_run
from attacks.registry import ATTACKS, load_attack
from fl_audit.game import read_truth
from fl_audit.results import MembershipResult, ReconstructionResult
from fl_audit.run_directory import RunDirectory
from fl_audit.stats import auc_ci
from simulations.rehearsals import run_rehearser

FALSE_FAILURE = 1e-6
LEVEL = FALSE_FAILURE / len(ATTACKS)
SPECS = {name: load_attack(name) for name in sorted(ATTACKS)}
# attacks on a released model have targets of their own: tests/attacks/membership/test_all.py
# attacks on persons have games of their own: tests/attacks/federated/test_user_membership.py
ELSEWHERE = {"user_membership"}
MEMBERSHIP = [
    n
    for n, s in SPECS.items()
    if s.kind == "membership" and not s.is_on_model and n not in ELSEWHERE
]
RECONSTRUCTION = [name for name, spec in SPECS.items() if spec.kind == "reconstruction"]
# attacks that need another federation than the honest one of pictures, by fixture
RUNS: dict[str, str] = {
    "ascent_response": "ascent_run",
    "relu_trap": "trap_run",
    "embedding_rows": "text_run",
    "local_ascent_response": "client_ascent_run",
}
# fewer or quicker steps than by default, to spare the suite's time
SETTINGS: dict[str, dict[str, Any]] = {
    "federated_stacking": {"num_shadow_federations": 2, "attacks": ["cosine", "loss_series"]}
}


@pytest.mark.parametrize("name", MEMBERSHIP)
def test_null_candidates_look_alike(name: str, request: pytest.FixtureRequest) -> None:
    run = _run_for(name, request)
    result = _membership(run, name)
    truth = read_truth(RunDirectory.open(run))
    assert result.null_scores is not None
    estimate = auc_ci(truth.null_is_member, result.null_scores, confidence=1 - LEVEL)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("name", MEMBERSHIP)
def test_members_of_a_memorised_set_stand_out(name: str, request: pytest.FixtureRequest) -> None:
    """Also catches a reversed sign: the same interval must lie above chance."""
    result = _membership(_run_for(name, request), name)
    assert result.is_member is not None
    scored = slice(None) if result.is_scored is None else result.is_scored
    estimate = auc_ci(result.is_member[scored], result.scores[scored], confidence=1 - LEVEL)
    assert estimate.low > 0.5


@pytest.mark.parametrize("name", RECONSTRUCTION)
def test_reconstruction_beats_a_guess_made_without_the_update(name: str, fedsgd_run: Path) -> None:
    (result,) = audit_run(fedsgd_run, attacks=[name])
    assert isinstance(result, ReconstructionResult)
    metrics, baseline = result.record.metrics, result.record.baseline
    assert metrics
    assert all(metrics[m].low > baseline[m].high for m in metrics)


def _run_for(name: str, request: pytest.FixtureRequest) -> Path:
    run: Path = request.getfixturevalue(RUNS.get(name, "memorising_run"))
    return run


@cache
def _membership(run: Path, name: str) -> MembershipResult:
    (result,) = audit_run(
        run,
        attacks=[{"name": name, **SETTINGS.get(name, {})}],
        trust_model=True,  # fixtures of ours
        rehearser=run_rehearser(RunDirectory.open(run), trusted=True),
    )
    assert isinstance(result, MembershipResult), result.record
    return result

"""Null and positive tests of attacks on traces, so that a new attack cannot skip them.

Candidates that were never trained on must look alike to every membership attack: the interval of
the AUC contains 0.5 at level 1e-6 divided by the number of registered attacks (false-failure rate
of the whole file over fresh seeds: at most 1e-6).
"""

from __future__ import annotations

from collections.abc import Callable
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
INVERSIONS = (
    "dlg",
    "fedavg_multi_step",
    "huang",
    "idlg",
    "inverting_gradients",
    "second_order",
)
RUNS: dict[str, str] = {
    **{f"{seat}{name}": "inversion_run" for name in INVERSIONS for seat in ("", "local_")},
    "ascent_response": "ascent_run",
    "relu_trap": "trap_run",
    "embedding_rows": "text_run",
    "fishing": "fishing_run",
    "imprint": "imprint_run",
    "local_ascent_response": "client_ascent_run",
    "local_label_counts": "sums_run",
    "local_linear_inversion": "pair_run",
    "local_tabular": "table_run",
    "local_token_recovery": "token_run",
    "local_token_sets": "token_run",
    "tabular": "table_run",
    "token_recovery": "token_run",
    "token_sets": "token_run",
    "weight_traps": "quantile_traps_run",
}
# fewer or quicker steps than by default, to spare the suite's time
SETTINGS: dict[str, dict[str, Any]] = {
    # seat 0: the sum of two clients' single digits
    **{f"local_{n}": {"seat": 0, "iterations": 300, "most_updates": 3} for n in INVERSIONS},
    **{name: {"iterations": 300, "most_updates": 4} for name in INVERSIONS},
    # digits of 8 x 8 pixels are not smooth: the recipes' total variation blurs them
    **{
        f"{seat}{name}": {**more, "iterations": 300, "most_updates": 4, "total_variation": 0.0}
        for name in ("inverting_gradients", "huang")
        for seat, more in (("", {}), ("local_", {"seat": 0}))
    },
    # seat 0: the sum of two clients' single rows
    "local_tabular": {"seat": 0, "restarts": 2, "iterations": 200, "most_updates": 3},
    "local_linear_inversion": {"seat": 0},
    "local_token_recovery": {"seat": 0},
    "tabular": {"restarts": 2, "iterations": 120, "most_updates": 4},
    "token_recovery": {"most_updates": 10},
    "federated_stacking": {"num_shadow_federations": 2, "attacks": ["cosine", "loss_series"]},
}


@pytest.fixture(scope="session")
def sums_run(run_tables: Callable[..., Path]) -> Path:
    """Five FedSGD clients with one digit a round, thirty rounds: a sum a round is one trial."""
    return run_tables(
        "sums",
        federation={"rounds": 30},
        training={"algorithm": "fedsgd", "batch_size": 1},
    )


@pytest.fixture(scope="session")
def pair_run(run_tables: Callable[..., Path]) -> Path:
    """Two FedSGD clients with one digit a round: each sees the other's update in the sum."""
    return run_tables(
        "pair",
        federation={"clients": 2, "rounds": 10},
        training={"algorithm": "fedsgd", "batch_size": 1},
    )


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
def test_reconstruction_beats_a_guess_made_without_the_update(
    name: str, request: pytest.FixtureRequest
) -> None:
    run: Path = request.getfixturevalue(RUNS.get(name, "fedsgd_run"))
    settings = SETTINGS.get(name, {})
    (result,) = audit_run(run, attacks=[{"name": name, **settings}], trust_model=True)
    assert isinstance(result, ReconstructionResult), result.record
    assert result.record.leading is not None, result.record
    assert result.record.beats_guess(result.record.leading), result.record


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

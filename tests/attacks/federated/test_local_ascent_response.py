"""Ascent response from a client's seat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attacks.federated.local_ascent_response import local_ascent_response_scores, response
from attacks.requests import check_attacks, parse_attacks
from fl_audit.errors import ObservationError
from fl_audit.game import read_game
from fl_audit.run_directory import RunDirectory
from fl_audit.threat_model import PRESETS
from fl_audit.trace import TraceView

SEED = 20_261_125


def test_who_falls_further_than_its_height_explains_scores_higher() -> None:
    before = np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(response(before, 0.5 * before + 1), 0, atol=1e-12)
    after = 0.5 * before + 1 - np.array([0, 0.3, 0, 0])
    assert response(before, after).argmax() == 1


def test_equal_heights_leave_the_fall_itself() -> None:
    after = np.array([1.0, 3.0])
    np.testing.assert_allclose(response(np.array([2.0, 2.0]), after), [1.0, -1.0])


def test_residuals_sum_to_zero_and_do_not_follow_the_height() -> None:
    rng = np.random.default_rng(SEED)
    before, after = rng.random(50), rng.random(50)
    found = response(before, after)
    assert found.sum() == pytest.approx(0, abs=1e-9)
    assert found @ (before - before.mean()) == pytest.approx(0, abs=1e-9)


def test_an_honest_adversary_cannot_ask_for_it() -> None:
    requests = parse_attacks("local_ascent_response")
    check_attacks(requests, PRESETS["malicious-client"])
    with pytest.raises(ObservationError, match="malicious"):
        check_attacks(requests, PRESETS["curious-client"])


def test_it_needs_the_aggregate_only(digits_run: Path) -> None:
    run = RunDirectory.open(digits_run)
    manifest = run.read_manifest()
    assert manifest.model is not None
    view = TraceView(
        run.open_trace(), PRESETS["malicious-client"], model=manifest.model.builder(trusted=False)
    )
    candidates = read_game(run).candidates
    scores = local_ascent_response_scores(view, candidates, rounds=[1, 2])
    assert scores.shape == (len(candidates),)
    assert np.isfinite(scores).all()

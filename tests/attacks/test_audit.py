"""Orchestration: what is refused, what is kept, and that the truth stays with the scorer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from attacks.audit import audit_run, audit_trace, fresh_labels, parse_attacks
from fl_audit.errors import InputError, ObservationError, UnknownNameError
from fl_audit.game import read_game, read_truth
from fl_audit.results import MembershipResult
from fl_audit.run_directory import RunDirectory
from fl_audit.stats import auc
from fl_audit.threat_model import PRESETS


def test_the_same_attack_may_appear_several_times() -> None:
    tables = [
        "cosine",
        {"name": "cosine", "layers": ["1.weight"]},
        {"name": "cosine", "label": "c"},
    ]
    assert [r.label for r in parse_attacks(tables)] == ["cosine", "cosine-2", "c"]


@pytest.mark.parametrize(
    ("attack", "error", "message"),
    [
        ("lira_", UnknownNameError, "unknown attack 'lira_'"),
        ({"layers": []}, InputError, "must name its attack"),
        ({"name": "cosine", "layer": 1}, InputError, "Did you mean 'layers'"),
        ({"name": "cosine", "layers": 3}, InputError, "layers"),
        ({"name": "cosine", "label": "../x"}, InputError, "names the result's file"),
    ],
)
def test_bad_requests_are_refused(
    attack: str | dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        parse_attacks([attack])


def test_an_attack_without_its_observation_names_the_missing_flag(digits_run: Path) -> None:
    with pytest.raises(ObservationError, match="client-updates"):
        audit_trace(
            digits_run / "trace",
            attacks=["row_space"],
            threat_model=PRESETS["secure-aggregation-server"],
            seed=0,
        )


def test_scores_on_disk_give_the_reported_number(digits_run: Path) -> None:
    (result,) = audit_run(digits_run, attacks=["cosine"], folder="again")
    assert isinstance(result, MembershipResult)
    table = pq.read_table(digits_run / "results" / "again" / "cosine.parquet")
    assert result.record.result is not None
    assert result.record.result.metrics["auc"].value == auc(
        np.asarray(table["is_member"]), np.asarray(table["score"])
    )


def test_without_the_truth_there_are_scores_and_no_figures(digits_run: Path) -> None:
    run = RunDirectory.open(digits_run)
    (result,) = audit_trace(
        run.trace,
        attacks=["row_space"],
        threat_model=PRESETS["curious-server"],
        game=read_game(run),
        seed=0,
    )
    assert isinstance(result, MembershipResult)
    assert result.record.result is None
    assert result.scores.shape == (400,)


def test_scores_do_not_depend_on_the_truth(digits_run: Path, tmp_path: Path) -> None:
    """Reverse every coin: an attack that peeked would score differently."""
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(digits_run, run.path)
    shutil.rmtree(run.truth)
    original = RunDirectory.open(digits_run)
    for name in ("row_space", "cosine", "loss_threshold"):
        with_truth, without = (
            audit_trace(
                where.trace,
                attacks=[name],
                threat_model=PRESETS["curious-server"],
                game=read_game(where),
                truth=truth,
                model=original.read_manifest().model.builder(trusted=False),  # type: ignore[union-attr]
                seed=0,
            )[0]
            for where, truth in ((original, read_truth(original)), (run, None))
        )
        assert isinstance(with_truth, MembershipResult)
        assert isinstance(without, MembershipResult)
        assert (with_truth.scores == without.scores).all()


def test_a_foreign_model_factory_is_not_imported_unasked(digits_run: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(digits_run, run.path)
    manifest = run.read_manifest()
    assert manifest.model is not None
    evil = manifest.model.model_copy(update={"factory": "os:system"})
    run.write_manifest(manifest.model_copy(update={"model": evil}))
    with pytest.raises(InputError, match="not imported unasked"):
        audit_run(run.path, attacks=["cosine"])


def test_a_failing_attack_does_not_take_the_others_with_it(digits_run: Path) -> None:
    bad, good = audit_run(
        digits_run, attacks=[{"name": "cosine", "layers": ["x"]}, "row_space"], folder="fail"
    )
    assert bad.record.kind == "unavailable"
    assert good.record.kind == "membership"


def test_a_result_is_never_overwritten_by_another(digits_run: Path) -> None:
    run = RunDirectory.open(digits_run)
    same, other = (
        parse_attacks(["cosine"]),
        parse_attacks([{"name": "cosine", "layers": ["1.bias"]}]),
    )
    assert [r.label for r in fresh_labels(run, same)] == ["cosine"]
    assert [r.label for r in fresh_labels(run, other)] == ["cosine-2"]

"""Orchestration: what is refused, what is kept, and that the truth stays with the scorer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from attacks.audit import audit_run, audit_trace, fresh_labels
from attacks.requests import parse_attacks
from fl_audit.errors import InputError, ObservationError, TraceError, UnknownNameError
from fl_audit.game import read_game, read_truth
from fl_audit.results import MembershipResult
from fl_audit.run_directory import Problem, RunDirectory
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


def test_only_unknown_keys_get_a_suggestion() -> None:
    with pytest.raises(InputError, match="'layers' = 3: Input should be") as caught:
        parse_attacks([{"name": "cosine", "layers": 3}])
    assert "Did you mean" not in str(caught.value)


def test_an_attack_without_its_observation_names_the_missing_flag(digits_run: Path) -> None:
    with pytest.raises(ObservationError, match="client-updates"):
        audit_trace(
            digits_run / "trace",
            attacks=["cosine"],
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


def members(result: object) -> int:
    assert isinstance(result, MembershipResult)
    assert result.record.result is not None
    return result.record.result.num_members


def test_what_was_not_recorded_dilutes_no_attack_on_updates(
    run_tables: Callable[..., Path],
) -> None:
    """One of five clients recorded: its records count for row space, all for the final model."""
    whole, part = (
        run_tables(
            "recording",
            federation={"rounds": 2},
            data={"examples_per_client": 20},
            recording=recording,
            audit={"attacks": ["row_space", "loss_threshold"]},
        )
        for recording in ({}, {"record": "targets", "clients": [0]})
    )
    for attack in ("row_space", "loss_threshold"):
        (everything,) = audit_run(whole, attacks=[attack], folder="again")
        (chosen,) = audit_run(part, attacks=[attack], folder="again")
        assert isinstance(chosen, MembershipResult)
        of_client = read_truth(RunDirectory.open(part))
        own = int((of_client.is_member & (of_client.client == 0)).sum())
        if attack == "loss_threshold":
            assert members(chosen) == members(everything)
            continue
        assert 0 < own == members(chosen) < members(everything)
        assert chosen.record.result is not None
        assert chosen.record.result.metrics["auc"].value == 1.0
        lost = members(everything) - own
        (note,) = [n for n in chosen.record.notes if "were held by clients" in n]
        assert f"({lost}: the recording policy (or its cap" in note


def test_an_older_model_never_stands_in_for_the_final_one(digits_run: Path, tmp_path: Path) -> None:
    """The last of six rounds is gone. Unless run.json knows why, nothing is attacked."""
    shutil.copytree(digits_run, tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    shutil.rmtree(run.trace / "round_0006")
    with pytest.raises(TraceError, match=r"trace = \[6\]: .* last rounds are missing"):
        audit_run(run.path, attacks=["row_space"])
    (live,) = audit_run(run.path, attacks=["loss_threshold"], up_to=5)
    assert live.record.kind == "membership"

    problem = Problem(where="recording", round=6, message="recording failed: OSError")
    run.write_manifest(run.read_manifest().model_copy(update={"problems": [problem]}))
    updates, model = audit_run(run.path, attacks=["row_space", "loss_threshold"])
    assert updates.record.kind == "membership"
    assert model.record.kind == "unavailable"
    assert "the global model after round 6" in model.record.reason


def test_labels_name_files_and_may_have_spaces_inside() -> None:
    (request,) = parse_attacks([{"name": "loss_threshold", "label": "last layer"}])
    assert request.label == "last layer"
    for label in (" x", "x ", "../x", "a/b", "", "x\n"):
        with pytest.raises(InputError, match="attack label"):
            parse_attacks([{"name": "loss_threshold", "label": label}])

"""The report over seeds: attacks that are missing in some runs, other kinds, and hostile names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fl_audit.errors import InputError, RunDirectoryError
from fl_audit.report.model import AuditReport
from fl_audit.report.seeds import load_seeds, summarise_seeds
from fl_audit.report.seeds_page import render_seeds


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "confidence": 0.95, "n": 40}


def metrics(auc: float) -> dict[str, Any]:
    return {
        "num_members": 20,
        "num_non_members": 20,
        "metrics": {"auc": estimate(auc)},
        "roc": {"fpr": [0, 1], "tpr": [0, 1]},
    }


def membership(label: str, auc: float, **changes: Any) -> dict[str, Any]:
    return {
        **head(label),
        "kind": "membership",
        "result": metrics(auc),
        "null": metrics(0.5),
        "null_holds": True,
        "scores_file": "x.parquet",
        **changes,
    }


def head(label: str) -> dict[str, Any]:
    return {
        "label": label,
        "attack": label if label in ("loss_threshold", "cosine") else "other",
        "seed": 0,
        "settings": {},
        "requires": [],
        "knows": [],
        "reference": "",
        "summary": "",
        "rounds": [1],
    }


def report(attacks: list[dict[str, Any]], title: str = "Demo") -> AuditReport:
    run = {
        "title": title,
        "created": "2026-01-01",
        "seed": 0,
        "engine": "local",
        "versions": {},
        "threat_model": {
            "who": "server",
            "activity": "honest-but-curious",
            "sees": [],
            "knows": [],
        },
        "strategy": {},
        "defence": {},
    }
    return AuditReport.model_validate(
        {"run": run, "trace": None, "game": None, "attacks": attacks, "not_tested": []}
    )


def summary(*runs: list[dict[str, Any]], title: str = "Demo") -> Any:
    reports = {seed: report(attacks, title) for seed, attacks in enumerate(runs)}
    return summarise_seeds(reports, folders={seed: f"seed_{seed}" for seed in reports})


def test_an_attack_that_failed_in_a_run_is_compared_on_the_others() -> None:
    gone = {**head("cosine"), "kind": "unavailable", "reason": "no update"}
    found = summary(
        [membership("cosine", 0.7), membership("loss_threshold", 0.6)],
        [membership("cosine", 0.8), membership("loss_threshold", 0.6)],
        [gone, membership("loss_threshold", 0.5)],
    )
    cosine, threshold = found.attacks
    assert cosine.metrics["auc"].mean.n == 2
    assert threshold.metrics["auc"].mean.n == 3
    assert cosine.unavailable == {2: "no update"}
    (gain,) = found.differences
    assert gain.values == pytest.approx({0: 0.1, 1: 0.2})
    assert "no update" in render_seeds(found)


def test_one_value_has_no_interval_and_is_said_so() -> None:
    found = summary([membership("cosine", 0.7)], [membership("other", 0.6)])
    assert found.attacks[0].metrics["auc"].mean is None
    assert found.differences == []
    assert "one run: 0.700" in render_seeds(found)


def test_the_final_model_comes_first_then_pairs_then_canaries() -> None:
    part = {"mislabelled": {"result": metrics(0.9), "null": None}}
    attacks = [
        membership("cosine", 0.7, slices=part),
        membership("other", 0.6),
        membership("loss_threshold", 0.55),
    ]
    found = summary(attacks, attacks)
    assert [(d.first, d.first_metric, d.second) for d in found.differences] == [
        ("cosine", "auc", "loss_threshold"),
        ("other", "auc", "loss_threshold"),
        ("cosine", "auc", "other"),
        ("cosine", "auc (mislabelled)", "cosine"),
    ]
    assert "AUC (mislabelled)" in render_seeds(found)


def test_other_kinds_of_attack_have_means_too() -> None:
    rebuilt = {
        **head("inversion"),
        "kind": "reconstruction",
        "num_targets": 3,
        "metrics": {"psnr_db": {**estimate(20), "low": 10, "high": 30}},
        "baseline": {"psnr_db": {**estimate(9), "low": 8, "high": 10}},
        "arrays_file": None,
    }
    metric = summary([rebuilt], [rebuilt]).attacks[0].metrics["psnr_db"]
    assert (metric.mean.value, metric.null_mean.value) == (20, 9)


def test_names_from_outside_stay_text() -> None:
    bad = "<script>alert(1)</script>"
    attacks = [membership("cosine", 0.7) | {"label": bad}]
    page = render_seeds(summary(attacks, attacks, title=bad))
    assert "<script" not in page
    assert page == render_seeds(summary(attacks, attacks, title=bad))
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)


def test_one_run_is_no_replication(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two"):
        summary([membership("cosine", 0.7)])
    (tmp_path / "seeds.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"seeds\.json"):
        load_seeds(tmp_path / "seeds.json")

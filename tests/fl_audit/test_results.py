"""Result records: intervals hold their value, nothing unknown, no NaN, no path out of results/."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from fl_audit.results import AnyAttackRecord, Curve, Estimate, MembershipMetrics

RECORDS: TypeAdapter[AnyAttackRecord] = TypeAdapter(AnyAttackRecord)
AUC = {"value": 0.5, "low": 0.4, "high": 0.6, "confidence": 0.95, "n": 10}
HEADER = {
    "schema_version": 1,
    "label": "cosine",
    "attack": "cosine",
    "seed": 0,
    "settings": {"layers": [1, None, {"a": "b"}]},
    "requires": ["client-updates"],
    "knows": [],
    "reference": "https://example.org",
    "summary": "one line",
    "rounds": [1, 2],
    "notes": [],
}
METRICS = {
    "num_members": 5,
    "num_non_members": 5,
    "metrics": {"auc": AUC},
    "refused": {"tpr@fpr=0.001": "needs 1000 non-members"},
    "roc": {"fpr": [0.0, 1.0], "tpr": [0.0, 1.0]},
}
BY_KIND: dict[str, dict[str, Any]] = {
    "membership": {
        "result": METRICS,
        "null": None,
        "null_holds": None,
        "decisions": None,
        "details": None,
        "scores_file": "cosine.parquet",
    },
    "reconstruction": {
        "num_targets": 1,
        "metrics": {"psnr": AUC},
        "baseline": {},
        "refused": {},
        "arrays_file": "cosine.safetensors",
    },
    "estimate": {
        "claim": "which client holds a record",
        "trial": "a member",
        "metrics": {"accuracy": AUC},
        "chance": {"accuracy": 0.2},
        "baseline": {},
        "null": {},
        "refused": {},
        "timeline_metric": "accuracy",
        "timeline": [{"round": 1, "estimate": AUC}],
        "table_file": "source.parquet",
    },
    "unavailable": {"reason": "no candidates"},
}


@pytest.mark.parametrize("kind", BY_KIND)
def test_a_record_comes_back(kind: str) -> None:
    content = {**HEADER, "kind": kind, **BY_KIND[kind]}
    record = RECORDS.validate_python(content)
    assert record.kind == kind
    written = json.loads(record.model_dump_json())
    assert {name: written[name] for name in content} == content
    assert RECORDS.validate_python(written) == record  # what was not given has its default


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "rumour"},
        {"schema_version": 2},
        {"extra": 1},
        {"settings": {"lr": float("nan")}},
        {"seed": 0.5},
    ],
    ids=str,
)
def test_a_record_that_breaks_a_rule_is_refused(change: dict[str, Any]) -> None:
    content = {**HEADER, "kind": "unavailable", **BY_KIND["unavailable"], **change}
    with pytest.raises(ValidationError):
        RECORDS.validate_python(content)


@pytest.mark.parametrize("kind", ["membership", "reconstruction"])
@pytest.mark.parametrize("stem", ["../run", "/etc/x", "a/b", "..\\x", ""])
def test_a_file_name_cannot_leave_results(kind: str, stem: str) -> None:
    """Results come with a run directory, maybe somebody else's, and their files are opened."""
    key, suffix = {
        "membership": ("scores_file", ".parquet"),
        "reconstruction": ("arrays_file", ".safetensors"),
    }[kind]
    content = {**HEADER, "kind": kind, **BY_KIND[kind], key: stem + suffix}
    with pytest.raises(ValidationError, match=key):
        RECORDS.validate_python(content)


def test_words_are_cleaned() -> None:
    content = {**HEADER, "kind": "unavailable", "reason": "\x1b[2Jgone\u202e", "notes": ["a\x07"]}
    record = RECORDS.validate_python(content)
    assert record.kind == "unavailable"
    assert (record.reason, record.notes) == ("gone", ["a"])


@pytest.mark.parametrize(
    "change",
    [
        {"value": 0.3},
        {"value": 0.7},
        {"low": 0.61},
        {"value": float("nan")},
        {"high": float("inf")},
        {"confidence": 1.0},
        {"confidence": 0.0},
        {"n": 0},
    ],
    ids=str,
)
def test_an_estimate_lies_within_its_interval(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Estimate.model_validate({**AUC, **change})


def test_an_interval_of_no_width_is_an_estimate() -> None:
    estimate = Estimate(value=1, low=1, high=1, confidence=0.95, n=1)
    assert str(estimate) == "1.000 [1.000, 1.000]"


def test_records_do_not_change() -> None:
    estimate = Estimate.model_validate(AUC)
    with pytest.raises(ValidationError, match="frozen"):
        estimate.value = 0.9  # type: ignore[misc]


def test_metrics_need_members_and_non_members() -> None:
    for key in ("num_members", "num_non_members"):
        with pytest.raises(ValidationError, match=key):
            MembershipMetrics.model_validate({**METRICS, key: 0})


def test_a_curve_holds_no_nan() -> None:
    with pytest.raises(ValidationError):
        Curve(fpr=[0.0, float("nan")], tpr=[0.0, 1.0])

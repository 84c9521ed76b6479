"""Leakage over rounds: what is drawn, and that it stands in numbers beside."""

from __future__ import annotations

from typing import Any

import pytest

from fl_audit.report.timeline import timeline
from fl_audit.results import MembershipRecord


def record(label: str, values: dict[int, float]) -> MembershipRecord:
    points = [
        {
            "round": number,
            "auc": {"value": v, "low": v - 0.1, "high": v + 0.1, "confidence": 0.95, "n": 40},
        }
        for number, v in values.items()
    ]
    fields: dict[str, Any] = {
        **dict.fromkeys(("result", "null", "null_holds")),
        **{"label": label, "attack": "cosine", "seed": 0, "settings": {}, "requires": []},
        **{"knows": [], "reference": "", "summary": "", "rounds": [], "timeline": points},
        "scores_file": "x.parquet",
    }
    return MembershipRecord.model_validate(fields)


def test_rounds_are_rows_and_gaps_stay_gaps() -> None:
    found = timeline([record("a", {3: 0.7, 1: 0.6}), record("b", {2: 0.5}), record("none", {})])
    assert found is not None
    assert [line.label for line in found.lines] == ["a", "b"]
    table = [(n, [e and e.value for e in row]) for n, row in found.table]
    assert table == [(1, [0.6, None]), (2, [None, 0.5]), (3, [0.7, None])]
    assert 'role="img"' in found.figure
    assert "chance at 0.5" in found.figure
    assert "a" not in [line.style for line in found.lines]  # names are the page's, not the figure's


def test_without_rounds_there_is_no_figure() -> None:
    assert timeline([record("a", {})]) is None


@pytest.mark.parametrize("rounds", [1, 300])
def test_one_round_and_many(rounds: int) -> None:
    found = timeline([record(f"a{i}", dict.fromkeys(range(1, rounds + 1), 0.6)) for i in range(20)])
    assert found is not None
    assert len(found.lines) == 14
    assert found.num_left_out == 6
    assert str(found.figure).count("nan") == 0

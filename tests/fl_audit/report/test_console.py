"""What a command prints of results: a few in full, many on a line each."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from fl_audit.cli.console import print_results
from fl_audit.results import (
    AnyAttackRecord,
    Estimate,
    MembershipRecord,
    ReconstructionRecord,
    UnavailableRecord,
)


def record(label: str, **changes: Any) -> MembershipRecord:
    names = ("auc", "tpr@fpr=0.1", "tpr@fpr=0.01", "tpr@fpr=0.001", "balanced_accuracy")
    estimates = {
        name: Estimate(value=0.7 + i / 100, low=0.6, high=0.8, confidence=0.95, n=400)
        for i, name in enumerate(names)
    }
    fields: dict[str, Any] = {
        "label": label,
        "attack": "lira",
        "seed": 0,
        "settings": {},
        "requires": ["logits"],
        "knows": [],
        "reference": "",
        "summary": "",
        "rounds": [],
        "result": {
            "num_members": 200,
            "num_non_members": 200,
            "metrics": estimates,
            "roc": {"fpr": [0, 1], "tpr": [0, 1]},
        },
        "null": None,
        "null_holds": None,
        "scores_file": "lira.parquet",
    }
    return MembershipRecord.model_validate(fields | changes)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_audit.cli.console.console", Console(width=80))


def printed(records: list[AnyAttackRecord], capsys: pytest.CaptureFixture[str]) -> str:
    print_results(records)
    return capsys.readouterr().out


def test_a_few_attacks_are_printed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed([record(f"a{i}") for i in range(6)], capsys)
    assert " ".join(out.split()).count("tpr@fpr=0.001 0.730 [0.600, 0.800] -") == 6
    assert out.count("leaks membership") == 6


def test_many_attacks_fit_80_columns_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    labels = [f"a_long_attack_name_{i:02}" for i in range(19)]
    records: list[AnyAttackRecord] = [record(label) for label in labels]
    records.append(record("[red]by labels[/]", requires=["labels-only"]))
    base = record("x").model_dump(include={*UnavailableRecord.model_fields} - {"kind"})
    records.append(UnavailableRecord(**base | {"label": "shokri"}, reason="[bold]needs more"))
    out = printed(records, capsys)
    assert max(map(len, out.splitlines())) <= 80
    for column in ("auc", "tpr@fpr=0.01", "tpr@fpr=0.001", "balanced", "accuracy"):
        assert column in out
    for value in ("0.700", "0.720", "0.730", "0.740"):
        assert out.count(value) == 20
    assert "0.710" not in out  # the highest rate makes way
    lines = [line.strip() for line in out.splitlines()]
    assert lines.index("labels") < lines.index("confidences")
    assert out.count("leaks membership") == 1
    assert "[red]by labels[/]" in " ".join(out.split())
    assert "not available: [bold]needs more" in out
    assert "All figures, and their controls, stand in the report." in out


def rebuilt(**changes: Any) -> ReconstructionRecord:
    base = record("second_order").model_dump(
        include={*ReconstructionRecord.model_fields} - {"kind"}
    )
    share = Estimate(value=0.9, low=0.85, high=0.95, confidence=0.95, n=50)
    low = Estimate(value=0.1, low=0.05, high=0.15, confidence=0.95, n=50)
    own = {"num_targets": 50, "metrics": {"recovered": share}, "baseline": {"recovered": low}}
    return ReconstructionRecord(**base | own | {"arrays_file": None} | changes)


def test_theory_stands_below_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed([rebuilt(expected={"recovered": 0.896, "exact": 0.5})], capsys)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    place = lines.index("second_order recovered 0.900 [0.850, 0.950] 0.100 [0.050, 0.150]")
    assert lines[place + 1 : place + 3] == ["theory 0.896", "exact, theory 0.500"]


def test_names_give_way_and_numbers_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    share = Estimate(value=0.9, low=0.85, high=0.95, confidence=0.95, n=50)
    label = "a_reconstruction_with_a_name_of_its_own"
    out = printed([rebuilt(label=label, metrics={"recovered": share})], capsys)
    assert "0.900 [0.850, 0.950]" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_a_small_distance_keeps_its_digits(capsys: pytest.CaptureFixture[str]) -> None:
    small = Estimate(value=0.000123456, low=0.00002, high=0.0011, confidence=0.95, n=4)
    out = printed([rebuilt(metrics={"feature_distance": small}, baseline={})], capsys)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    place = lines.index("second_order feature_distance 0.000123 -")
    assert lines[place + 1] == "[2e-05, 0.0011]"


def test_every_figure_of_a_reconstruction_leaves_room_for_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("psnr_db", "recovered_20", "exact", "exact_8bit", "re_identified@1")
    share = Estimate(value=0.9, low=0.85, high=0.95, confidence=0.95, n=50)
    tiny = Estimate(value=5.25e-5, low=6.41e-7, high=1.04e-4, confidence=0.95, n=50)
    every = {**dict.fromkeys(names, share), "feature_distance": tiny}
    shown = rebuilt(metrics=every, baseline=every, gain=every, leading="psnr_db")
    out = printed([shown], capsys)
    assert "second_order" in out.split("second_order training")[0]
    assert "…" not in out


def test_what_decides_and_what_is_refused_are_in_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gain = Estimate(value=0.8, low=0.7, high=0.9, confidence=0.95, n=50)
    exact = Estimate(value=0.5, low=0.4, high=0.6, confidence=0.95, n=50)
    reason = "an interval needs 2 updates or more; found: 150"
    shown = rebuilt(
        metrics={"exact": exact, "exact_8bit": exact},
        gain={"exact": gain, "exact_8bit": gain},
        leading="exact",
        refused={"psnr_db": reason},
    )
    out = " ".join(printed([shown], capsys).split())
    assert "exact (< 1e-6) 0.500 [0.400, 0.600] - gain, decides 0.800 [0.700, 0.900]" in out
    assert out.count("gain, decides") == 1
    assert "exact (< 1/510) 0.500" in out
    assert "psnr_db refused -" in out
    assert f"second_order, psnr_db refused: {reason}" in out

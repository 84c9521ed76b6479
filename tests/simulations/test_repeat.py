"""Several seeds: what is kept, what is refused, and that the figures are those of the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fl_audit.cli.main import app
from fl_audit.errors import InputError
from fl_audit.report.model import load_report
from fl_audit.report.seeds import SeedsReport, load_seeds
from fl_audit.stats import mean_ci
from simulations.repeat import parse_seeds, run_seeds
from simulations.run import refuse_other_scenario
from simulations.scenario import Scenario, parse_scenario

SEEDS = [0, 1, 7]


def scenario(**tables: Any) -> Scenario:
    small = {
        "federation": {"clients": 3, "rounds": 1},
        "audit": {"attacks": ["cosine", "loss_threshold"]},
    }
    return parse_scenario(small | tables)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SeedsReport]:
    out = tmp_path_factory.mktemp("seeds") / "all"
    return out, run_seeds(scenario(), SEEDS, out=out)


def test_figures_are_means_over_runs_with_a_paired_difference(
    done: tuple[Path, SeedsReport],
) -> None:
    out, report = done
    aucs: dict[str, list[float]] = {"cosine": [], "loss_threshold": []}
    for seed in SEEDS:
        run = load_report(out / f"seed_{seed}" / "report.json")
        assert run.run.seed == seed
        for record in run.attacks:
            assert record.kind == "membership"
            assert record.result is not None
            aucs[record.label].append(record.result.metrics["auc"].value)
    for attack in report.attacks:
        metric = attack.metrics["auc"]
        assert metric.mean == mean_ci(np.asarray(aucs[attack.label]), bounds=(0, 1))
        assert metric.mean is not None
        assert metric.mean.n == 3
        assert list(metric.values) == SEEDS
        assert list(metric.null_values) == SEEDS
    (found,) = report.differences
    assert (found.first, found.second) == ("cosine", "loss_threshold")
    gaps = np.asarray(aucs["cosine"]) - np.asarray(aucs["loss_threshold"])
    assert found.mean == mean_ci(gaps, bounds=(-1, 1))


def test_files_say_the_same(done: tuple[Path, SeedsReport]) -> None:
    out, report = done
    assert load_seeds(out / "seeds.json") == report
    page = (out / "seeds.html").read_text(encoding="utf-8")
    assert "3 runs of one scenario" in page
    assert "<script" not in page


def test_finished_runs_are_kept_and_new_seeds_are_added(
    done: tuple[Path, SeedsReport], tmp_path: Path
) -> None:
    out, before = done
    stamps = {s: (out / f"seed_{s}" / "report.json").stat().st_mtime_ns for s in SEEDS}
    (out / "seed_1" / "report.json").unlink()  # as if it had ended before its report
    again = run_seeds(scenario(), [*SEEDS, 8], out=out)
    for seed in (0, 7):
        assert (out / f"seed_{seed}" / "report.json").stat().st_mtime_ns == stamps[seed]
    assert again.seeds == [0, 1, 7, 8]
    first, second = (r.attacks[0].metrics["auc"].values for r in (before, again))
    assert {s: second[s] for s in SEEDS} == first


def test_a_run_of_another_scenario_is_refused(done: tuple[Path, SeedsReport]) -> None:
    out, _ = done
    with pytest.raises(InputError, match=r"'federation.clients' = 4: .*begun with 3\."):
        run_seeds(scenario(federation={"clients": 4, "rounds": 1}), SEEDS, out=out)


@pytest.mark.parametrize("seeds", [[], [3], [1, 1], [-1, 2]])
def test_too_few_seeds_are_refused_before_anything_is_written(
    seeds: list[int], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="at least 2 seeds"):
        run_seeds(scenario(), seeds, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-4", [0, 1, 2, 3, 4]), ("0,1,7", [0, 1, 7]), ("0-2, 7", [0, 1, 2, 7])]
)
def test_seeds_as_they_are_written(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "3", "1,1", "4-0", "a", "0-99999999", "1;2"])
def test_what_is_no_list_of_seeds(text: str) -> None:
    with pytest.raises(InputError, match="seeds"):
        parse_seeds(text)


def test_too_many_seeds_are_said_to_be_too_many() -> None:
    assert len(parse_seeds("0-999")) == 1000
    for text in ("0-1000", "0-999,1000"):
        with pytest.raises(InputError, match="at most 1000 seeds"):
            parse_seeds(text)


def test_a_run_directory_does_not_become_a_folder_of_runs(done: tuple[Path, SeedsReport]) -> None:
    out = done[0] / "seed_0"
    before = sorted(out.iterdir())
    with pytest.raises(InputError, match="it is the run directory"):
        run_seeds(scenario(), SEEDS, out=out)
    assert sorted(out.iterdir()) == before


def test_overwrite_and_resume_exclude_each_other(done: tuple[Path, SeedsReport]) -> None:
    out, _ = done
    stamp = (out / "seed_0" / "report.json").stat().st_mtime_ns
    file = str(out / "seed_0" / "scenario.toml")
    options = ["--seeds", "0-1", "--overwrite", "--resume"]
    result = CliRunner().invoke(app, ["run", file, "--out", str(out), *options])
    assert isinstance(result.exception, InputError)
    assert "deleted and resumed" in str(result.exception)
    assert (out / "seed_0" / "report.json").stat().st_mtime_ns == stamp


def test_the_key_that_differs_is_named_with_both_values() -> None:
    first = scenario(model={"name": "mlp", "hidden": [3]})
    for other, message in (
        (scenario(model={"name": "mlp", "hidden": [4]}), r"'model.hidden' = \[4\]: .*with \[3\]"),
        (scenario(), r"'model.hidden' = None: .*with \[3\]"),
        (
            scenario(model={"name": "mlp", "hidden": [3], "groups": 1}),
            r"'model.groups' = 1: .*begun without it",
        ),
    ):
        with pytest.raises(InputError, match=message):
            refuse_other_scenario(first, other)


def test_the_command_line(done: tuple[Path, SeedsReport], tmp_path: Path) -> None:
    """On the runs that are there: nothing is run again, and the means are printed."""
    out, _ = done
    result = CliRunner().invoke(
        app,
        ["run", str(out / "seed_0" / "scenario.toml"), "--out", str(out), "--seeds", "0,1,7"],
    )
    assert result.exit_code == 0, result.output
    assert "Means over 3 runs" in result.output
    assert "AUC of cosine minus loss_threshold" in result.output
    assert "seeds.html" in result.output

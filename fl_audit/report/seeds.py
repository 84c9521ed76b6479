"""Several runs of one scenario: means over seeds, with the run as the unit of replication.

Records of one run share a model, so more of them do not make a run's figure more certain as a
statement about the scenario. Here n is the number of runs, and intervals are Student's over runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from fl_audit.errors import InputError, RunDirectoryError, clean_text
from fl_audit.files import private_directory, read_json, write_text
from fl_audit.report.model import AuditReport
from fl_audit.results import (
    AnyAttackRecord,
    Estimate,
    MembershipRecord,
    Record,
    Text,
    UnavailableRecord,
)
from fl_audit.stats import mean_ci

LEAST_RUNS = 2
BASELINE = "loss_threshold"
"""The attack on the final model that every other one is compared with, where it was run."""

_FRACTIONS = ("auc", "tpr@fpr=", "balanced_accuracy", "exact", "label_overlap", "accuracy")


class SeedsMetric(Record):
    """One figure of one attack over runs."""

    mean: Estimate | None = Field(description="Over runs; None with fewer than two values")
    values: dict[int, float] = Field(description="Seed: the run's figure")
    null_mean: Estimate | None = Field(description="The same of the null controls or baselines")
    null_values: dict[int, float] = Field(default_factory=dict)


class SeedsAttack(Record):
    """An attack over runs.

    Metrics on canaries of one kind carry it: "auc (mislabelled)".
    """

    label: Text
    attack: Text
    kind: Text
    metrics: dict[Text, SeedsMetric]
    unavailable: dict[int, Text] = Field(
        default_factory=dict, description="Seed: why the attack gave no number there"
    )


class SeedsDifference(Record):
    """One figure minus another, run by run: seeds are paired, so luck with a run cancels."""

    first: Text
    first_metric: Text
    second: Text
    second_metric: Text
    mean: Estimate = Field(description="First minus second, over runs")
    values: dict[int, float]


class SeedsReport(Record):
    """What several runs of one scenario found, and how sure that is."""

    schema_version: Literal[1] = 1
    title: Text
    seeds: list[int] = Field(min_length=LEAST_RUNS)
    runs: dict[int, Text] = Field(description="Seed: folder of the run, beside this file")
    attacks: list[SeedsAttack]
    differences: list[SeedsDifference] = Field(
        description="Between attacks, by AUC, and between canaries and natural records of each"
    )

    def save(self, folder: str | Path) -> Path:
        """Write seeds.json and seeds.html into `folder`.

        Returns:
            The path of seeds.html.
        """
        from fl_audit.report.seeds_page import render_seeds  # jinja2 and matplotlib are slow

        target = private_directory(Path(folder))
        write_text(target / "seeds.json", self.model_dump_json(indent=1))
        page = target / "seeds.html"
        write_text(page, render_seeds(self))
        return page


def summarise_seeds(
    reports: Mapping[int, AuditReport], *, folders: Mapping[int, str], confidence: float = 0.95
) -> SeedsReport:
    """Means over runs, and paired differences.

    Args:
        reports: Seed: the report of its run.
        folders: Seed: where the run stands, for the reader.

    Raises:
        InputError: If there are fewer than two runs.
    """
    if len(reports) < LEAST_RUNS:
        raise InputError(
            "seeds",
            sorted(reports),
            "an interval over runs needs at least two",
            "Give two seeds or more, for example 0-4.",
        )
    records = {seed: {r.label: r for r in report.attacks} for seed, report in reports.items()}
    labels = {label: None for found in records.values() for label in found}  # in order, once each
    attacks = [_attack(label, records, confidence) for label in labels]
    return SeedsReport(
        title=next(iter(reports.values())).run.title,
        seeds=list(reports),
        runs=dict(folders),
        attacks=attacks,
        differences=list(_differences(attacks, confidence)),
    )


def paired_difference(
    first: tuple[SeedsAttack, str], second: tuple[SeedsAttack, str], *, confidence: float = 0.95
) -> SeedsDifference | None:
    """(attack, metric) minus (attack, metric) on the seeds of both; None if fewer than two."""
    (a, a_metric), (b, b_metric) = first, second
    ours, theirs = a.metrics[a_metric].values, b.metrics[b_metric].values
    values = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    if len(values) < LEAST_RUNS:
        return None
    bounds = (-1.0, 1.0) if _is_fraction(a_metric) and _is_fraction(b_metric) else None
    return SeedsDifference(
        first=a.label,
        first_metric=a_metric,
        second=b.label,
        second_metric=b_metric,
        mean=_mean(values, bounds, confidence),
        values=values,
    )


def load_seeds(path: str | Path) -> SeedsReport:
    """Read a seeds.json.

    Raises:
        RunDirectoryError: If it is missing, damaged, or of another version.
    """
    try:
        return SeedsReport.model_validate(read_json(Path(path)))
    except (OSError, ValueError, ValidationError) as error:
        raise RunDirectoryError(
            "seeds.json",
            clean_text(error, 200),
            "the file is missing, damaged or of another version",
            "Write it again with `fl-audit run scenario.toml --seeds ... --out DIR`.",
        ) from error


def _attack(
    label: str, records: Mapping[int, Mapping[str, AnyAttackRecord]], confidence: float
) -> SeedsAttack:
    own = {seed: found[label] for seed, found in records.items() if label in found}
    able = {s: r for s, r in own.items() if not isinstance(r, UnavailableRecord)}
    figures = {seed: _figures(record) for seed, record in able.items()}
    names = {name: None for found in figures.values() for name in found}
    first = next(iter(able.values()), next(iter(own.values())))
    return SeedsAttack(
        label=label,
        attack=first.attack,
        kind=first.kind,
        metrics={
            name: _metric(name, {s: f[name] for s, f in figures.items() if name in f}, confidence)
            for name in names
        },
        unavailable={s: r.reason for s, r in own.items() if isinstance(r, UnavailableRecord)},
    )


def _figures(record: AnyAttackRecord) -> dict[str, tuple[Estimate, Estimate | None]]:
    """Each metric's estimate in a run, and its control's."""
    if isinstance(record, UnavailableRecord):
        return {}
    if not isinstance(record, MembershipRecord):
        control = getattr(record, "null", None) or record.baseline
        return {name: (found, control.get(name)) for name, found in record.metrics.items()}
    pairs = {"": (record.result, record.null)}
    pairs |= {f" ({kind})": (part.result, part.null) for kind, part in record.slices.items()}
    return {
        f"{name}{suffix}": (found, None if null is None else null.metrics.get(name))
        for suffix, (result, null) in pairs.items()
        if result is not None
        for name, found in result.metrics.items()
    }


def _metric(
    name: str, pairs: Mapping[int, tuple[Estimate, Estimate | None]], confidence: float
) -> SeedsMetric:
    bounds = (0.0, 1.0) if _is_fraction(name) else None
    values = {seed: found.value for seed, (found, _) in pairs.items()}
    nulls = {seed: null.value for seed, (_, null) in pairs.items() if null is not None}
    return SeedsMetric(
        mean=_mean(values, bounds, confidence) if len(values) >= LEAST_RUNS else None,
        values=values,
        null_mean=_mean(nulls, bounds, confidence) if len(nulls) >= LEAST_RUNS else None,
        null_values=nulls,
    )


def _differences(attacks: Sequence[SeedsAttack], confidence: float) -> Iterator[SeedsDifference]:
    """Every attack against the final-model attack first, then all other pairs, then canaries."""
    scored = [a for a in attacks if "auc" in a.metrics]
    base = [a for a in scored if a.attack == BASELINE]
    others = [a for a in scored if a.attack != BASELINE]
    pairs = [((a, "auc"), (b, "auc")) for b in base for a in others]
    pairs += [((a, "auc"), (b, "auc")) for a, b in combinations(others, 2)]
    pairs += [
        ((a, name), (a, "auc")) for a in scored for name in a.metrics if name.startswith("auc (")
    ]
    for first, second in pairs:
        found = paired_difference(first, second, confidence=confidence)
        if found is not None:
            yield found


def _mean(
    values: Mapping[int, float], bounds: tuple[float, float] | None, confidence: float
) -> Estimate:
    numbers = np.asarray(list(values.values()), dtype=np.float64)
    return mean_ci(numbers, confidence=confidence, bounds=bounds or (-np.inf, np.inf))


def _is_fraction(name: str) -> bool:
    return name.startswith(_FRACTIONS)

"""How much of a table comes back from gradients, by batch size, and what confidence is worth.

    python tests/benchmarks/tabular.py --adult FOLDER [--sizes 1 2 4 8 16] [--batches 5]

FOLDER holds UCI Adult as train.parquet and test.parquet (14 attributes and `income`). Both files
together are shuffled with seed 0; batches are drawn from the first 39,073 rows, and the attacker's
1,000 records from the others. Numbers are standardised with the former's mean and deviation,
categories one-hot. The model is an untrained MLP 108-100-100-2 with ReLU, one seed a batch; its
gradient is float32. The attack is the preset `tabular`, labels inferred.

A column is right if the category is, or the number lies within 0.319 standard deviations; rows are
paired with the originals by the number of right columns, in the attack and the baseline alike. The
baseline sees no gradient: median and most frequent category of the attacker's records. Confidence
is judged by its AUC for right against wrong columns, and by the accuracy of its upper and lower
half. Intervals: 95 % over batches (Student).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import nn

from attacks.reconstruction.optimisation.presets import preset
from attacks.reconstruction.tables import TableLayout, infer_layout
from attacks.reconstruction.tabular import TableInversion, invert_table

TRAIN, AUXILIARY = 39_073, 1000
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One batch: which columns are right, and how sure the attacker was of each."""

    right: NDArray[np.bool_]
    confidence: Values
    guessed: NDArray[np.bool_]
    is_matched: bool
    seconds: float


def main() -> None:
    """Print the figures of each batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adult", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=1500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs, labels, groups = adult(options.adult)
    auxiliary = inputs[TRAIN : TRAIN + AUXILIARY]
    layout = infer_layout(auxiliary, groups)
    for size in options.sizes:
        outcomes = []
        for seed in range(options.batches):
            rows = np.random.default_rng(seed).choice(TRAIN, size, replace=False)
            outcomes.append(
                attack(
                    inputs[rows],
                    labels[rows],
                    auxiliary,
                    layout,
                    seed=seed,
                    iterations=options.iterations,
                )
            )
        print(describe(size, outcomes, len(layout.numeric)), flush=True)


def adult(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], list[list[int]]]:
    """Encoded rows, labels (1: above 50K), and the columns of each category."""
    files = [pd.read_parquet(folder / f"{name}.parquet") for name in ("train", "test")]
    table = pd.concat(files).sample(frac=1, random_state=0)
    labels = table.pop("income").str.contains(">50K").to_numpy(dtype=np.int64)
    numbers = table.select_dtypes("number")
    known = numbers.iloc[:TRAIN]
    parts = [((numbers - known.mean()) / known.std()).to_numpy()]
    groups, first = [], numbers.shape[1]
    for name in table.columns.difference(numbers.columns, sort=False):
        part = pd.get_dummies(table[name]).to_numpy(dtype=np.float64)
        groups.append(list(range(first, first + part.shape[1])))
        first += part.shape[1]
        parts.append(part)
    return np.concatenate(parts, axis=1).astype(np.float32), labels, groups


def attack(
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
    auxiliary: NDArray[np.float32],
    layout: TableLayout,
    *,
    seed: int,
    iterations: int,
) -> Outcome:
    """Invert the gradient of one batch."""
    torch.manual_seed(seed)
    width = layout.num_columns
    model = nn.Sequential(
        nn.Linear(width, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 2)
    )
    loss = nn.functional.cross_entropy(model(torch.from_numpy(inputs)), torch.from_numpy(labels))
    names = [name for name, _ in model.named_parameters()]
    found: Any = torch.autograd.grad(loss, list(model.parameters()))
    start = time.perf_counter()
    inversion = invert_table(
        model,
        dict(zip(names, found, strict=True)),
        layout,
        config=preset("tabular", iterations=iterations),
        generator=torch.Generator().manual_seed(seed),
        batch_size=len(inputs),
        proxies=auxiliary,
    )
    return outcome(inversion, inputs, auxiliary, layout, time.perf_counter() - start)


def outcome(
    found: TableInversion,
    inputs: NDArray[np.float32],
    auxiliary: NDArray[np.float32],
    layout: TableLayout,
    seconds: float,
) -> Outcome:
    """Compare what came back with the truth, and a guess with it."""
    truth, mine = inputs.astype(np.float64), found.inversion.inputs
    right, order = paired(mine, truth, layout)
    columns = [*layout.numeric, *(group[0] for group in layout.groups)]
    guess = auxiliary.mean(0).astype(np.float64)
    guess[layout.numeric] = np.median(auxiliary[:, layout.numeric], axis=0)
    guessed, _ = paired(np.tile(guess, (len(truth), 1)), truth, layout)
    is_matched = "match the gradient: residual" in found.inversion.notes[-1]
    return Outcome(right, found.confidence[order][:, columns], guessed, is_matched, seconds)


def paired(
    mine: Values, truth: Values, layout: TableLayout
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which columns are right where rows are paired up best, and the rows' order."""
    right = layout.right(mine[:, None], truth[None])
    order, columns = linear_sum_assignment(-right.mean(-1))
    return right[order, columns], order


def describe(size: int, outcomes: list[Outcome], num_numeric: int) -> str:
    """One line of figures."""
    right = np.concatenate([o.right for o in outcomes])
    guessed = np.concatenate([o.guessed for o in outcomes])
    confidence = np.concatenate([o.confidence for o in outcomes]).ravel()
    shares = np.array([o.right.mean() for o in outcomes])
    half = stats.t.ppf(0.975, len(shares) - 1) * stats.sem(shares) if len(shares) > 1 else np.nan
    is_sure = confidence >= np.median(confidence)
    flat = right.ravel()
    categories, numbers = right[:, num_numeric:].mean(), right[:, :num_numeric].mean()
    parts = [
        f"B = {size}: right {shares.mean():.3f} ± {half:.3f}",
        f"categories {categories:.3f}, numbers {numbers:.3f}",
        f"baseline {guessed.mean():.3f}",
        f"whole rows {right.all(1).mean():.3f}",
        f"gradient matched in {sum(o.is_matched for o in outcomes)} of {len(outcomes)}",
        f"confidence AUC {auc(confidence, flat):.3f}, upper half {flat[is_sure].mean():.3f}, "
        f"lower {flat[~is_sure].mean() if (~is_sure).any() else np.nan:.3f}",
        f"{np.median([o.seconds for o in outcomes]):.0f} s a batch",
    ]
    return "; ".join(parts)


def auc(confidence: Values, right: NDArray[np.bool_]) -> float:
    """Chance that a right column is surer than a wrong one; NaN if there are not both."""
    if right.all() or not right.any():
        return float("nan")
    return float(
        stats.mannwhitneyu(confidence[right], confidence[~right]).statistic
        / (right.sum() * (~right).sum())
    )


if __name__ == "__main__":
    main()

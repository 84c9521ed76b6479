"""In which order a client went through its labels: tried, and judged by the attacker's objective.

Unrolled steps fit an update only with the right labels in the right step. Labels are known as
counts, and their order is the client's secret; but a wrong order cannot be matched as well as the
right one, which shows after a short search.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from math import factorial

import torch

from attacks.reconstruction.optimisation.plan import LocalPlan
from attacks.reconstruction.optimisation.problem import Problem
from attacks.reconstruction.optimisation.search import Found

Tensor = torch.Tensor
_ENUMERATED = 6  # records up to which every order is listed


def label_orders(plan: LocalPlan, labels: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Different sequences of labels for the searched inputs, the given one first.

    Within a step the order plays no part. All sequences there are, if they are no more than
    `plan.orders`; otherwise so many, drawn at random.

    Args:
        labels: Of the records, shape (n,).

    Returns:
        Each of shape (epochs * n,).
    """
    found = {_key(plan, plan.spread(labels)): plan.spread(labels)}
    for order in _orders(plan, len(labels), generator):
        if len(found) >= plan.orders:
            break
        sequence = labels[order]
        found.setdefault(_key(plan, sequence), sequence)
    return list(found.values())


def best_order(
    problem: Problem,
    plan: LocalPlan,
    labels: Tensor,
    search: Callable[[Problem], Found],
    generator: torch.Generator,
) -> tuple[Problem, list[str]]:
    """The problem with the sequence of labels whose short search got nearest.

    Args:
        labels: Of the records, shape (n,).
        search: Searches a problem from one start.
    """
    sequences = label_orders(plan, labels, generator)
    if len(sequences) == 1:
        return problem, []
    short = problem.config.model_copy(
        update={"iterations": plan.trial, "restarts": 1, "frames": 0, "patience": 0}
    )
    lowest, best = float("inf"), sequences[0]
    for sequence in sequences:
        value = float(search(replace(problem, labels=sequence, config=short)).values.min())
        if value < lowest:
            lowest, best = value, sequence
    note = (
        f"{len(sequences)} orders of labels were tried for {plan.trial} evaluations each; the one "
        f"with the best objective ({lowest:.2g}) was searched."
    )
    return replace(problem, labels=best), [note]


def _orders(plan: LocalPlan, num: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of the records in each epoch, one after another: every order, or random ones."""
    if plan.epochs == 1 and num <= _ENUMERATED:
        orders = [torch.tensor(order) for order in itertools.permutations(range(num))]
        mixed = torch.randperm(factorial(num), generator=generator)
        return [orders[int(place)] for place in mixed]
    tries = 4 * plan.orders  # some draws repeat a sequence
    return [
        torch.cat([torch.randperm(num, generator=generator) for _ in range(plan.epochs)])
        for _ in range(tries)
    ]


def _key(plan: LocalPlan, sequence: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted(sequence[rows].tolist())) for rows in plan.batches())

"""`tabular`: rows of a table from gradients, by many searches that are pooled.

Categories are searched as a softmax over their columns. Searches from different starts are paired
up row by row and pooled, and each value comes with a confidence. Rows are given in the model's
input units, with one category of each set to 1.

References:
    Vero, Balunovic, Dimitrov, Vechev, "TabLeak: Tabular Data Leakage in Federated Learning",
    ICML 2023. https://arxiv.org/abs/2210.01785
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from attacks.federated.rounds import Source
from attacks.reconstruction.gradient_inversion import engine_options, invert_all
from attacks.reconstruction.inversion_settings import InversionSettings, preset_settings
from attacks.reconstruction.inversion_tasks import Task
from attacks.reconstruction.label_steps import LocalWork
from attacks.reconstruction.observed import both_seats
from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.engine import Sight, invert_gradients
from attacks.reconstruction.optimisation.plan import LocalPlan
from attacks.reconstruction.optimisation.presets import preset
from attacks.reconstruction.optimisation.result import Inversion
from attacks.reconstruction.optimisation.search import Tick
from attacks.reconstruction.polishing import polish_numbers
from attacks.reconstruction.pooling import pool
from attacks.reconstruction.tables import TableLayout, infer_layout, plain_layout
from fl_audit.attack_spec import AttackInput, Reconstructions
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge

Values = NDArray[np.float64]

WITHIN = 2.0
POLISH = 20
EXPLAINED = 1e-8  # of the gradient's square: right rows leave only the rounding of the update


@dataclass(frozen=True, slots=True, eq=False)
class TableInversion:
    """Rows whose gradient is (nearly) the observed one.

    Attributes:
        inversion: With the pooled rows as `inputs`; its objective is the best search's.
        confidence: Of each value, in [0, 1], shape (b, columns).
    """

    inversion: Inversion
    confidence: Values


def invert_table(
    model: torch.nn.Module,
    gradients: Mapping[str, Any],
    layout: TableLayout,
    *,
    labels: Any = None,
    config: InversionConfig | None = None,
    generator: torch.Generator,
    batch_size: int | None = None,
    proxies: Any = None,
    plan: LocalPlan | None = None,
    work: LocalWork | None = None,
    more: Sequence[Sight] = (),
    within: float = WITHIN,
    polish: int = POLISH,
    tick: Tick | None = None,
) -> TableInversion:
    """Reconstruct the rows of a table behind a gradient.

    Args:
        layout: Of the encoded table.
        config: How to search, two restarts or more; the preset `tabular` by default.
        within: How many times the best objective a search may have to be pooled.
        polish: Steps of Levenberg-Marquardt on the numbers alone, once categories are found.
        model, gradients, labels, generator, batch_size, proxies, plan, work, more, tick:
            As for `invert_gradients`.

    Raises:
        InputError: As `invert_gradients`, or if fewer than two searches came to an end.
    """
    config = preset("tabular") if config is None else config
    found = invert_gradients(
        model,
        gradients,
        input_shape=(layout.num_columns,),
        labels=labels,
        config=config,
        generator=generator,
        batch_size=batch_size,
        proxies=proxies,
        plan=plan,
        work=work,
        more=more,
        decode=layout.decode,
        tick=tick,
    )
    are_shared = labels is not None or config.labels != "joint"
    pooled = pool(
        found.restarts,
        found.restart_objectives,
        layout,
        labels=found.labels if are_shared else None,
        within=within,
    )
    note = f"{pooled.num_pooled} of {len(found.restarts)} searches were pooled."
    found = replace(
        found, inputs=layout.snap(pooled.rows, to_grid=False), notes=(*found.notes, note)
    )
    is_one_gradient = not more and (plan is None or plan.steps == 1)
    if polish and is_one_gradient and config.objective != "sign":
        begins = [found.inputs, layout.snap(found.restarts[0], to_grid=False)]
        found = _polished(
            model, gradients, found, begins, layout=layout, config=config, steps=polish
        )
    return TableInversion(found, pooled.confidence)


def _polished(
    model: torch.nn.Module,
    gradients: Mapping[str, Any],
    found: Inversion,
    begins: Sequence[Values],
    *,
    layout: TableLayout,
    config: InversionConfig,
    steps: int,
) -> Inversion:
    """With numbers that explain the gradient, if categories at one of the beginnings are right.

    Where the gradient cannot be matched from there, numbers are left as the searches found them.
    """
    for rows in begins:
        closer, refined = polish_numbers(
            model, gradients, rows, found.labels, layout=layout, config=config, steps=steps
        )
        if refined.objective[-1] <= EXPLAINED:
            share = np.sqrt(refined.objective[-1])
            note = f"With these categories, numbers match the gradient: residual {share:.2g}."
            # the cosine's distance is half of the sum of squares
            half = 1.0 if config.objective == "euclidean" else 0.5
            return replace(
                found,
                inputs=layout.snap(closer, to_grid=True),
                objective=half * float(refined.objective[-1]),
                notes=(*found.notes, note),
            )
    note = (
        "No numbers match the gradient with these categories: some are wrong, or the update is not "
        "exactly this gradient."
    )
    return replace(found, notes=(*found.notes, note))


class _TableSettings(InversionSettings):
    """Which updates, what the table is like, and how to search; the defaults are TabLeak's."""

    categories: list[list[int]] | None = None
    """Columns of each one-hot category; by default they are told from auxiliary records."""
    pool_within: float = Field(default=WITHIN, ge=1)
    """How many times the best objective a search may have to be pooled."""
    polish: int = Field(default=POLISH, ge=0)
    """Steps of Levenberg-Marquardt on numbers alone, once categories are found; 0: none."""


def run_tabular(given: AttackInput, source: Source) -> Reconstructions:
    """Invert the updates that the settings choose into rows."""
    layout = find_layout(given)
    confidences: list[Values] = []

    def search(given: AttackInput, task: Task) -> Inversion:
        found = _search(given, task, layout)
        confidences.append(found.confidence)
        return found.inversion

    found = invert_all(given, source, search)
    claims = zip(found.targets, confidences, strict=True)
    targets = tuple(replace(claim, confidence=confidence) for claim, confidence in claims)
    return replace(found, targets=targets, contents="table")


def find_layout(given: AttackInput) -> TableLayout:
    """The table's layout: from auxiliary records, or the settings' categories alone.

    Raises:
        InputError: If there is neither, or inputs are no rows.
    """
    categories = given.settings.categories
    if given.auxiliary is not None and len(given.auxiliary):
        return infer_layout(np.asarray(given.auxiliary.inputs), categories)
    shape = given.settings.input_shape
    if categories is None or shape is None:
        raise InputError(
            "categories",
            categories,
            "which columns are categories is not known, and there are no auxiliary records to tell",
            "Grant auxiliary-data, or set categories = [[3, 4, 5], ...] and input_shape = [20].",
        )
    if len(shape) != 1:
        raise InputError("input_shape", shape, "rows have one dimension", "Give [20], say.")
    return plain_layout(categories, shape[0])


def _search(given: AttackInput, task: Task, layout: TableLayout) -> TableInversion:
    settings = given.settings
    return invert_table(
        task.models[0],
        task.gradients[0],
        layout,
        within=settings.pool_within,
        polish=settings.polish,
        **engine_options(given, task),
    )


ATTACK, LOCAL_ATTACK = both_seats(
    "tabular",
    run_tabular,
    reference="https://arxiv.org/abs/2210.01785",
    summary="Rows of a table whose gradient is the observed one: categories by softmax, pooled",
    settings=preset_settings("tabular", _TableSettings),
    knows=Knowledge.LOCAL_TRAINING,
)

"""From where a search ended to what is reported: ranked, refined, in bounds."""

from __future__ import annotations

import numpy as np
import torch

from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.levenberg_marquardt import Refined, refine
from attacks.reconstruction.optimisation.plan import LocalPlan
from attacks.reconstruction.optimisation.problem import Point, Problem
from attacks.reconstruction.optimisation.result import Inversion, Values
from attacks.reconstruction.optimisation.search import Found, Tick
from attacks.reconstruction.optimisation.start import Scale
from fl_audit.errors import InputError

Tensor = torch.Tensor


def finish(
    problem: Problem,
    search: Found,
    scale: Scale,
    plan: LocalPlan | None,
    classes: Tensor,
    notes: list[str],
    tick: Tick | None,
) -> Inversion:
    """Rank restarts by the attacker's objective, refine the best, and put it into bounds."""
    order = torch.argsort(search.values)  # NaN and infinity come last
    best = int(order[0])
    if not bool(torch.isfinite(search.values[best])):
        raise InputError(
            "objective",
            float(search.values[best]),
            "is not finite at any start",
            "The model overflows on such inputs: check its weights, or set bounds.",
        )
    if search.broke:
        notes.append(
            f"{len(search.broke)} of {len(search.values)} restarts ended early: the objective "
            "was not finite any more. Their best point before that counts."
        )
    inputs, logits = search.point.inputs[best], None
    if search.point.logits is not None:
        logits = search.point.logits[best]
    history, value = search.objective, float(search.values[best])
    products = 0
    if problem.config.refine:
        inputs, logits, refined = _refine(problem, inputs, logits, tick)
        notes.append(_refine_note(refined, problem.config))
        value = float(problem.evaluate(Point(inputs[None], _first(logits)))[0][0])
        steps = np.full((len(refined.objective) - 1, history.shape[1]), np.nan)
        steps[:, best] = refined.objective[1:] * _share(problem)
        history = np.concatenate([history, steps])
        products = refined.products
    labels = classes if logits is None else logits.argmax(-1)
    found, merged = _inputs(problem, inputs, labels, scale, plan)
    others = [_inputs(problem, search.point.inputs[int(r)], labels, scale, plan)[0] for r in order]
    others[0] = found
    frames = [
        _inputs(problem, f[min(best, len(f) - 1)], labels, scale, plan)[0] for f in search.frames
    ]
    return Inversion(
        _numpy(found),
        merged.cpu().numpy(),
        value,
        history,
        np.stack([_numpy(each) for each in others]),
        search.values[order].double().cpu().numpy(),
        np.stack([_numpy(f) for f in frames]) if frames else np.zeros((0, *found.shape)),
        best,
        problem.evaluations[0] + products,
        tuple(notes),
    )


def _refine(
    problem: Problem, inputs: Tensor, logits: Tensor | None, tick: Tick | None
) -> tuple[Tensor, Tensor | None, Refined]:
    """Levenberg-Marquardt on the residuals of all sights; penalties play no part in it."""
    split = inputs.numel()

    def residual(unknowns: Tensor) -> Tensor:
        searched = unknowns[:split].view_as(inputs)
        given = problem.given(searched)
        labels = problem.labels
        if logits is not None:
            labels = unknowns[split:].view_as(logits).softmax(-1)
        assert labels is not None  # searched labels come with logits
        parts = [
            objective.residual(simulate.pure(given, labels))
            for simulate, objective in problem.sights
        ]
        rest: Tensor = torch.cat(parts) / float(np.sqrt(len(parts)))
        return rest

    start_at = torch.cat([p.detach().reshape(-1) for p in (inputs, logits) if p is not None])
    refined = refine(
        residual,
        start_at,
        steps=problem.config.refine,
        dense_limit=problem.config.dense_limit,
        most_products=problem.config.refine_evaluations,
        tick=tick,
    )
    ends = refined.unknowns
    found = None if logits is None else ends[split:].view_as(logits)
    return ends[:split].view_as(inputs), found, refined


def _share(problem: Problem) -> float:
    """The objective as a multiple of the sum of squares that refinement lowers."""
    return 0.5 if problem.sights[0][1].kind == "cosine" else 1.0


def _refine_note(refined: Refined, config: InversionConfig) -> str:
    how = (
        "with the Jacobian formed"
        if refined.is_dense
        else f"without forming the Jacobian, to spare memory (more than {config.dense_limit} "
        "unknowns, or too many equations)"
    )
    first, last = np.sqrt(refined.objective[[0, -1]])
    cut = (
        f" It was cut short: the next step needs more than refine_evaluations = "
        f"{config.refine_evaluations} products with the Jacobian."
    )
    return (
        f"Levenberg-Marquardt, {len(refined.objective) - 1} steps {how}: relative residual "
        f"{first:.2g} to {last:.2g}.{cut if refined.is_cut_short else ''}"
    )


def _inputs(
    problem: Problem, searched: Tensor, labels: Tensor, scale: Scale, plan: LocalPlan | None
) -> tuple[Tensor, Tensor]:
    """Model inputs of one restart: decoded, in bounds, one for each record."""
    found = problem.given(searched)
    if problem.config.box:
        found = scale.clamp_(found.clone())
    return (found, labels) if plan is None else plan.merge(found, labels)


def _first(logits: Tensor | None) -> Tensor | None:
    return None if logits is None else logits[None]


def _numpy(values: Tensor) -> Values:
    result: Values = values.detach().double().cpu().numpy()
    return result

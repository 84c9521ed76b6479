"""Gradient inversion: search inputs whose gradient is the observed one.

Nothing here sees the truth: restarts are ranked by the objective that the attacker itself can
compute, and labels come from the gradient unless the threat model grants them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attacks.reconstruction.label_steps import LocalWork
from attacks.reconstruction.optimisation.checks import (
    check_batch_size,
    check_inputs_fit,
    check_labels,
    check_pictures,
    check_proxies,
    gradient_tensors,
)
from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.finish import finish
from attacks.reconstruction.optimisation.labelling import find_labels
from attacks.reconstruction.optimisation.objectives import Objective, build_objective
from attacks.reconstruction.optimisation.orders import best_order
from attacks.reconstruction.optimisation.plan import LocalPlan
from attacks.reconstruction.optimisation.presets import preset
from attacks.reconstruction.optimisation.problem import Point, Problem
from attacks.reconstruction.optimisation.regularisers import (
    BATCH_NORMS,
    Moments,
    has_batch_norm,
    inferred_moments,
    proxy_moments,
    running_moments,
)
from attacks.reconstruction.optimisation.result import Inversion
from attacks.reconstruction.optimisation.search import Found, Tick, adam, lbfgs
from attacks.reconstruction.optimisation.simulation import LocalSteps, OneGradient, Simulation
from attacks.reconstruction.optimisation.smoothness import kinks
from attacks.reconstruction.optimisation.start import find_scale, start
from fl_audit.errors import InputError

Tensor = torch.Tensor
Decode = Callable[[Tensor], Tensor]
_ADAM_ONLY = ("signed", "learning_rate", "schedule", "warmup")
_DROPOUTS = (torch.nn.modules.dropout._DropoutNd, torch.nn.MultiheadAttention)


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """One more update of the same data, seen at another model.

    Attributes:
        model: With the weights that the client received.
        gradients: By parameter name.
    """

    model: torch.nn.Module
    gradients: Mapping[str, Any]


def invert_gradients(
    model: torch.nn.Module,
    gradients: Mapping[str, Any],
    *,
    input_shape: Sequence[int],
    labels: Any = None,
    config: InversionConfig | None = None,
    generator: torch.Generator,
    batch_size: int | None = None,
    proxies: Any = None,
    plan: LocalPlan | None = None,
    work: LocalWork | None = None,
    more: Sequence[Sight] = (),
    decode: Decode | None = None,
    tick: Tick | None = None,
) -> Inversion:
    """Reconstruct the batch behind a gradient.

    Args:
        model: With the weights at which the gradient was taken, in the mode (train or eval) in
            which it was. It is not changed.
        gradients: Gradient of the mean cross-entropy by parameter name, arrays or tensors. For
            several local steps: `pseudo_gradient` of the update, with a `plan`. With
            `config.statistics = "inferred"`, also the change of the model's buffers by name.
        input_shape: Of one input.
        labels: Classes, shape (b,), where they are known.
        config: How to search; `preset("second_order")` by default.
        generator: Draws starts, and noise to estimate labels with. On the CPU.
        batch_size: Inputs in the batch; estimated, and said so, if neither it nor labels are given.
        proxies: Inputs like the client's, (n, *input_shape): they scale the start, and help to
            estimate labels and statistics.
        plan: Local steps to unroll.
        work: Local steps behind a pseudo-gradient that is not unrolled: labels allow for them.
        more: Updates of the same data at other models.
        decode: From what is searched to inputs (softmax of categories, for tables).
        tick: Called with (evaluations done, at most).

    Returns:
        What was found, in the model's input units, with the attacker's own objective.

    Raises:
        InputError: If the gradient does not fit the model, a value is not finite, the model
            refuses inputs of this shape, or labels or statistics are needed and missing.
    """
    config = preset("second_order") if config is None else config
    check_pictures(config.total_variation, input_shape)
    check_batch_size(batch_size)
    module = _copy(model, config)
    like = next(module.parameters()).detach().reshape(-1)[:0]
    observed = gradient_tensors(module, gradients, like)
    own = None if proxies is None else torch.as_tensor(np.asarray(proxies)).to(like)
    check_proxies(own, input_shape)
    given = find_labels(
        module,
        observed,
        given=labels,
        strategy=config.labels,
        batch_size=batch_size if plan is None else plan.num_examples,
        proxies=own,
        input_shape=input_shape,
        generator=generator,
        work=work if plan is None else plan.work(),
    )
    num_classes = check_inputs_fit(module, input_shape, len(given.classes), like)
    check_labels(given.classes, num_classes)
    classes = given.classes if plan is None else plan.spread(given.classes)
    batch = torch.zeros(len(given.classes), *input_shape).to(like)
    problem = Problem(
        _sights(module, observed, config, plan, more, like),
        None if config.labels == "joint" and labels is None else classes,
        config,
        moments=_moments(module, gradients, config, own, batch=batch, plan=plan),
        decode=decode,
        prior=plan.prior if plan is not None and plan.epochs > 1 else None,
    )
    scale = find_scale(input_shape, config.bounds, own, like)
    shape = (config.restarts, len(classes), *input_shape)
    logits = None
    if problem.labels is None:
        logits = torch.randn(*shape[:2], num_classes, generator=generator).to(like)
    point = Point(start(config.start, shape, scale, generator), logits)
    uses_lbfgs, notes = _chooses_lbfgs(module, config, point)
    notes += [*_left_out(model, config, uses_lbfgs=uses_lbfgs), *_batch_norm_modes(model)]

    def search(task: Problem, tick: Tick | None = None) -> Found:
        one = point if task.config.restarts == config.restarts else point.first()
        return lbfgs(task, one, tick=tick) if uses_lbfgs else adam(task, one, scale, tick=tick)

    if plan is not None and plan.steps > 1 and problem.labels is not None:
        problem, tried = best_order(problem, plan, given.classes, search, generator)
        notes, classes = [*notes, *tried], _labels(problem)
    found = search(problem, tick)
    return finish(problem, found, scale, plan, classes, [*given.notes, *notes], tick)


def _labels(problem: Problem) -> Tensor:
    assert problem.labels is not None  # checked by the caller
    return problem.labels


def _copy(model: torch.nn.Module, config: InversionConfig) -> torch.nn.Module:
    """The model in the precision of the search, with its mode; BatchNorm in training mode uses the
    batch's statistics and leaves its running ones alone, which a search would run away with. The
    client's dropout masks are not known, and other draws would not be its own either."""
    module = copy.deepcopy(model).to(getattr(torch, config.precision))
    for layer in module.modules():
        if isinstance(layer, BATCH_NORMS) and layer.training:
            layer.track_running_stats = False
        if isinstance(layer, _DROPOUTS):
            layer.eval()
    return module


def _left_out(model: torch.nn.Module, config: InversionConfig, *, uses_lbfgs: bool) -> list[str]:
    """Notes on what plays no part in the search."""
    notes = []
    rates = [vars(m).get("p", vars(m).get("dropout")) for m in _dropouts(model) if m.training]
    if any(rates):
        notes.append("The client's dropout masks are not known: searched without dropout.")
    if config.batch_norm and not has_batch_norm(model):
        notes.append("The model has no BatchNorm: `batch_norm` plays no part.")
    if config.statistics != "none" and not config.batch_norm:
        notes.append(f'batch_norm is 0: statistics = "{config.statistics}" plays no part.')
    fields = InversionConfig.model_fields
    given = [name for name in _ADAM_ONLY if getattr(config, name) != fields[name].default]
    if uses_lbfgs and given:
        notes.append(f"L-BFGS has a line search: {', '.join(given)} (Adam's) played no part.")
    return notes


def _batch_norm_modes(model: torch.nn.Module) -> list[str]:
    """Notes on which statistics BatchNorm normalised by."""
    layers = [layer for layer in model.modules() if isinstance(layer, BATCH_NORMS)]
    own = [layer.training or layer.running_mean is None for layer in layers]
    notes = []
    if any(own):
        notes.append(
            "BatchNorm in training mode: the searched batch's own statistics were used, as the "
            "client used its batch's. They hide much of the inputs' level and contrast."
        )
    if not all(own):
        notes.append(
            "BatchNorm in eval mode: the model's running statistics were used. That is right only "
            "if the client normalised by them too."
        )
    return notes


def _dropouts(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, _DROPOUTS)]


def _sights(
    module: torch.nn.Module,
    observed: Mapping[str, Tensor],
    config: InversionConfig,
    plan: LocalPlan | None,
    more: Sequence[Sight],
    like: Tensor,
) -> list[tuple[Simulation, Objective]]:
    found = []
    others = [(_copy(s.model, config), s.gradients) for s in more]
    pairs = [(module, observed), *((m, gradient_tensors(m, g, like)) for m, g in others)]
    for each, gradient in pairs:
        names = tuple(gradient)
        objective = build_objective(config, gradient, names)
        simulation: Simulation = OneGradient(each, names)
        if plan is not None and plan.steps > 1:
            batches = [rows.to(like.device) for rows in plan.batches()]
            simulation = LocalSteps(each, names, plan.training, plan.rate, batches)
        found.append((simulation, objective))
    return found


def _moments(
    module: torch.nn.Module,
    gradients: Mapping[str, Any],
    config: InversionConfig,
    proxies: Tensor | None,
    *,
    batch: Tensor,
    plan: LocalPlan | None,
) -> list[Moments] | None:
    if not config.batch_norm or not has_batch_norm(module):
        return None  # nothing to hold on to; a note says so
    if config.statistics == "running":
        return running_moments(module)
    if config.statistics == "inferred":
        if plan is not None and plan.steps > 1:
            raise InputError(
                "statistics",
                "inferred",
                f"the running ones moved in {plan.steps} steps, and no single batch can be told",
                'Use "running" or "proxy".',
            )
        buffers = {name: torch.as_tensor(v).to(batch) for name, v in gradients.items()}
        return inferred_moments(module, buffers, batch)
    if proxies is None:
        raise InputError(
            "proxies",
            None,
            'statistics = "proxy" needs inputs like the client\'s',
            "Give some, or use the running statistics.",
        )
    return proxy_moments(module, proxies)


def _chooses_lbfgs(
    module: torch.nn.Module, config: InversionConfig, point: Point
) -> tuple[bool, list[str]]:
    if config.optimiser != "auto":
        return config.optimiser == "lbfgs", []
    if config.group_consistency:
        return False, ["Restarts are held together by group consistency: searched with Adam."]
    found = kinks(module, point.inputs[0])
    if found:
        return False, [f"The model is not smooth ({', '.join(found)}): searched with Adam."]
    return True, ["The model is smooth: searched with L-BFGS."]

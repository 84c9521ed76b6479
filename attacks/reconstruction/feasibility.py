"""Can the batch be reconstructed at all? Asked before anything is searched.

A gradient is a set of equations in the inputs. Fewer equations than unknowns, directions of the
input that move no gradient, or rounding larger than the update cannot be made good by a better
search: only a prior would fill what is missing. None of this looks at the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from attacks.reconstruction.optimisation.checks import check_inputs_fit, gradient_tensors
from attacks.reconstruction.optimisation.regularisers import BATCH_NORMS
from attacks.reconstruction.optimisation.simulation import effective_steps
from attacks.reconstruction.sensitivity import Rank, input_rank, probe_copy
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining

Tensor = torch.Tensor
Verdict = Literal["feasible", "doubtful", "hopeless"]
LabelKnowledge = Literal["known", "exposed", "hidden"]
BatchNormMode = Literal["none", "running", "batch"]

_FAR = 0.1  # of the weights' norm: beyond, local steps hardly see the gradient that they began with
_NOISY = 0.01  # of the update's norm: rounding that leaves visible errors
_ROUNDED = 1e-4  # of the largest bias gradient: a value below 0 by less may be 0 rounded
_ORDER: tuple[Verdict, ...] = ("feasible", "doubtful", "hopeless")


@dataclass(frozen=True, slots=True)
class Feasibility:
    """Whether a batch can be reconstructed, and why not.

    Attributes:
        verdict: "hopeless": no search can succeed without a prior; "doubtful": some of it cannot
            be found, or an assumption is shaky.
        reasons: What speaks against it, and what a reader must know, as sentences.
        unknowns: Numbers to find: batch size times size of an input.
        equations: Entries of the gradient that are not 0.
        rank: Of the gradient's derivative in the inputs, as bounds; None where it was not computed.
        labels: "exposed": the last layer gives them away.
        has_duplicates: Whether two records share a class; None if that is not certain.
        batch_norm: Statistics that BatchNorm layers used: the "running" ones, or the "batch"'s own.
        steps: Local steps behind the gradient; None if not known.
        moved: Length of the update as a share of the weights' norm; None if not known.
        rounding: Noise that storing weights adds, as a share of the update's norm; None if not
            known.
        dead: Parameters whose gradient is 0 throughout.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    unknowns: int
    equations: int
    rank: Rank | None
    labels: LabelKnowledge
    has_duplicates: bool | None
    batch_norm: BatchNormMode
    steps: int | None
    moved: float | None
    rounding: float | None
    dead: tuple[str, ...]

    def sentences(self) -> list[str]:
        """The verdict with its count of equations, then the reasons."""
        counts = f"{self.equations} equations for {self.unknowns} unknowns"
        return [f"Reconstruction is {self.verdict}: {counts}.", *self.reasons]


class _Findings:
    """Collects sentences; the worst of their verdicts is the verdict."""

    def __init__(self) -> None:
        self.verdict: Verdict = "feasible"
        self.reasons: list[str] = []

    def say(self, verdict: Verdict, sentence: str) -> None:
        self.verdict = max(self.verdict, verdict, key=_ORDER.index)
        self.reasons.append(sentence)


def check_feasibility(
    model: torch.nn.Module,
    gradients: Mapping[str, Any],
    *,
    input_shape: Sequence[int],
    batch_size: int | None,
    labels_known: bool,
    local: LocalTraining | None = None,
    rate: float | None = None,
    received: Mapping[str, Any] | None = None,
    clients: int = 1,
) -> Feasibility:
    """Count equations and unknowns, and look for what makes reconstruction fail.

    Args:
        model: With the weights and the mode (train or eval) of the client's; it is not changed.
        gradients: By parameter name; changes of buffers by theirs where the client sent them.
        input_shape: Of one input.
        batch_size: Records behind the gradient; None: judged for as many as there must be at least.
        labels_known: Whether the threat model grants the labels.
        local: How the client trained; None where `gradients` was sent as it is.
        rate: Learning rate of the round; by default that of `local` if it is the same each round.
        clients: Behind the gradient, if it is a sum's: each takes the steps of its own share.
        received: Weights as they were sent, by name: their precision decides the rounding. By
            default the model's.

    Raises:
        InputError: If the gradient does not fit the model, or the model refuses such inputs.
    """
    module = probe_copy(model)
    like = next(module.parameters()).detach().reshape(-1)[:0]
    observed = gradient_tensors(module, gradients, like)
    classes = check_inputs_fit(module, input_shape, 2, like)
    if batch_size is not None and batch_size < 1:
        raise InputError("batch_size", batch_size, "must be at least 1", "Leave it out if unknown.")
    findings = _Findings()
    present = _classes_present(observed, classes)
    size = batch_size or max(1, present or 1)
    if batch_size is None:
        findings.say("doubtful", f"The batch size is not known: judged for {size}, the fewest.")
    rank = _count(findings, module, observed, (size, *input_shape))
    labels = _labels(findings, observed, classes, is_known=labels_known)
    has_duplicates = _duplicates(findings, batch_size, classes, present)
    batch_norm = _batch_norm(findings, model, gradients)
    weights = received or {name: p.detach() for name, p in model.named_parameters()}
    each_client = None if batch_size is None else max(1, round(batch_size / clients))
    steps, moved, rounding = _update(findings, observed, weights, local, rate, each_client)
    return Feasibility(
        findings.verdict,
        tuple(findings.reasons),
        size * int(np.prod(input_shape)),
        _equations(observed),
        rank,
        labels,
        has_duplicates,
        batch_norm,
        steps,
        moved,
        rounding,
        _dead(observed),
    )


def _equations(observed: Mapping[str, Tensor]) -> int:
    return sum(int(torch.count_nonzero(g)) for g in observed.values())


def _dead(observed: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(name for name, g in observed.items() if not bool(g.any()))


def _count(
    findings: _Findings,
    module: torch.nn.Module,
    observed: Mapping[str, Tensor],
    shape: tuple[int, ...],
) -> Rank | None:
    """Equations against unknowns, and the rank where it is cheap."""
    unknowns, equations, dead = int(np.prod(shape)), _equations(observed), _dead(observed)
    if equations == 0:
        findings.say("hopeless", "The gradient is zero: it says nothing about the data.")
        return None
    if dead:
        shown = ", ".join(dead[:4]) + (", ..." if len(dead) > 4 else "")
        findings.say(
            "doubtful", f"{len(dead)} of {len(observed)} parameters got no gradient ({shown})."
        )
    if equations < unknowns:
        findings.say(
            "hopeless",
            f"At least {unknowns - equations} directions of the inputs are left open by too few "
            "equations: only a prior could fill them.",
        )
        return None
    rank, reason = input_rank(module, tuple(observed), shape)
    if rank is None:
        findings.say("feasible", f"Invisible directions were not looked for: {reason}.")
        return None
    invisible = unknowns - rank.high
    if invisible:
        share = invisible / unknowns
        at_least = "" if rank.is_exact else "at least "
        findings.say(
            "hopeless" if share > 0.5 else "doubtful",
            f"{at_least}{invisible} of {unknowns} directions of the inputs move no gradient "
            "(at a test point): they cannot be found.".capitalize(),
        )
    return rank


def _classes_present(observed: Mapping[str, Tensor], classes: int) -> int | None:
    """How many classes the batch holds at least: a bias gradient below 0 needs a label there."""
    last = list(observed.values())[-1]
    if tuple(last.shape) != (classes,):
        return None
    return int((last < -_ROUNDED * last.abs().max()).sum())


def _labels(
    findings: _Findings, observed: Mapping[str, Tensor], classes: int, *, is_known: bool
) -> LabelKnowledge:
    if is_known:
        return "known"
    last = list(observed.values())[-1]
    if bool(last.any()) and last.ndim in (1, 2) and len(last) == classes:
        return "exposed"
    findings.say(
        "doubtful", "The last layer does not give the labels away: they must be searched, too."
    )
    return "hidden"


def _duplicates(
    findings: _Findings, batch_size: int | None, classes: int, present: int | None
) -> bool | None:
    if batch_size is None:
        return None
    if batch_size > classes:
        findings.say(
            "feasible",
            f"{batch_size} records of {classes} classes share some: records of one class are "
            "harder to tell apart.",
        )
        return True
    return False if batch_size == 1 or present == batch_size else None


def _batch_norm(
    findings: _Findings, model: torch.nn.Module, gradients: Mapping[str, Any]
) -> BatchNormMode:
    layers = [layer for layer in model.modules() if isinstance(layer, BATCH_NORMS)]
    dropout = [m for m in model.modules() if isinstance(m, torch.nn.modules.dropout._DropoutNd)]
    if any(layer.training and layer.p > 0 for layer in dropout):
        findings.say("doubtful", "Dropout was on: which units it left out is not known.")
    if not layers:
        return "none"
    if any(layer.training for layer in layers):
        sent = any(name.endswith("running_mean") for name in gradients)
        findings.say(
            "feasible" if sent else "doubtful",
            "BatchNorm used the batch's own statistics, which were "
            + ("sent along." if sent else "not sent."),
        )
        return "batch"
    findings.say(
        "feasible", "BatchNorm used running statistics: right only if the client's are the model's."
    )
    return "running"


def _update(
    findings: _Findings,
    observed: Mapping[str, Tensor],
    weights: Mapping[str, Any],
    local: LocalTraining | None,
    rate: float | None,
    each_client: int | None,
) -> tuple[int | None, float | None, float | None]:
    """Local steps, how far they moved, and rounding as a share of that."""
    if local is None:
        return None, None, None
    steps = 1 if local.algorithm == "fedsgd" else None
    if each_client is not None:
        steps = local.steps(each_client)
    if rate is None and local.schedule == "constant":
        rate = local.learning_rate
    if steps is None or rate is None:
        findings.say(
            "feasible",
            "Local steps or the learning rate are not known: how far weights moved is not judged.",
        )
        return steps, None, None
    norm, noise = _weight_norms(observed, weights)
    length = float(torch.cat([g.reshape(-1) for g in observed.values()]).norm())
    length *= rate * effective_steps(steps, local.momentum)
    if length == 0 or norm == 0:
        return steps, None, None
    moved, rounding = length / norm, noise / length
    if rounding >= 1:
        findings.say("hopeless", f"Rounding of the weights is {rounding:.2g} times the update.")
    elif rounding >= _NOISY:
        findings.say(
            "doubtful", f"Rounding of the weights is {100 * rounding:.2g} % of the update."
        )
    if steps > 1:
        findings.say(
            "doubtful" if moved > _FAR else "feasible",
            f"{steps} local steps moved the weights by {100 * moved:.2g} % of their norm: read as "
            "one gradient, the update is only near it.",
        )
    return steps, moved, rounding


def _weight_norms(
    observed: Mapping[str, Tensor], weights: Mapping[str, Any]
) -> tuple[float, float]:
    """Norm of the weights, and of the error in storing them: uniform within one unit in the last
    place, so of variance ulp^2 / 12."""
    square, noise = 0.0, 0.0
    for name in observed:
        value = weights[name]
        kind = str(value.dtype).removeprefix("torch.")
        epsilon = torch.finfo(getattr(torch, kind)).eps
        array = value.double().cpu().numpy() if isinstance(value, Tensor) else value
        size = np.abs(np.asarray(array, dtype=np.float64))
        exponent = np.frexp(size)[1] - 1
        ulp = np.where(size > 0, np.ldexp(epsilon, exponent), 0.0)
        square += float(np.sum(size**2))
        noise += float(np.sum(ulp**2)) / 12
    return square**0.5, noise**0.5

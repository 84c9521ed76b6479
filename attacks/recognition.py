"""What a model is that somebody wants audited: how to ask it, what it predicts, how to build it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.population import TaskName
from attacks.shadows.store import entry_key
from attacks.shadows.target import (
    Target,
    Task,
    answer,
    callable_target,
    module_target,
    residuals,
)
from attacks.shadows.trainers import OnModel, Trainer
from attacks.shadows.training import Build, Job, factory_builder, fresh_builder
from attacks.split import Split
from fl_audit.errors import InputError
from fl_audit.factories import load_attribute
from fl_audit.records import Records

_PROBED = 64  # records whose answers tell probabilities from logits
_SUM_TOLERANCE = 1e-4  # of a module's probabilities, in single precision
_LEAST_PROBABILITY = 1e-12  # whose logarithm a smaller one gets; as for callables
PROBABILITIES_NOTE = (
    "The module answers probabilities, not logits (all between 0 and 1, with sum 1): their "
    f"logarithms, of at least {_LEAST_PROBABILITY:g}, are used as logits, of shadow models too."
)


def recognise(model: Any, device: str, kind: TaskName) -> tuple[Target, list[str]]:
    """What to ask, and what to say about it in the report.

    Args:
        kind: What the model is for: it decides between `predict_proba` and `predict`.

    Raises:
        InputError: If it is neither a torch module nor anything that answers.
    """
    if isinstance(model, Target):
        return model, []
    if isinstance(model, nn.Module):
        note = "The model was passed in training mode; it is audited in eval mode."
        return module_target(model, device=device), [note] if model.training else []
    answers = _answers(model, kind)
    if answers is not None:
        return callable_target(answers, kind=kind), []
    wanted = "probabilities" if kind == "classification" else "numbers"
    method = "predict_proba" if kind == "classification" else "predict"
    raise InputError(
        "model",
        type(model).__name__,
        f"is neither a torch module nor something that answers {wanted}",
        f"Pass a torch module, a function records -> {wanted}, or an object with {method}.",
    )


def _answers(model: Any, kind: TaskName) -> Callable[[NDArray[np.float32]], Any] | None:
    """How to ask what is no module: a function, or an object in scikit-learn's manner."""
    if callable(model):
        return cast("Callable[[NDArray[np.float32]], Any]", model)
    method = getattr(model, "predict_proba" if kind == "classification" else "predict", None)
    return _flattened(method) if callable(method) else None


def num_outputs(model: Any, inputs: NDArray[np.float32], device: str) -> int:
    """How many outputs a model has, whatever they mean."""
    target = model if isinstance(model, Target) else None
    if isinstance(model, nn.Module):
        target = module_target(model, device=device)
    if target is None:
        ask = _answers(model, "classification") or _answers(model, "regression")
        if ask is None:
            target, _ = recognise(model, device, "classification")  # raises, saying what is wanted
        else:
            target = callable_target(ask, kind="regression")  # taken as they are
    return int(answer(target, inputs).shape[1])


def _flattened(predict: Callable[..., Any]) -> Callable[[NDArray[np.float32]], Any]:
    """scikit-learn's models want one row a record."""
    return lambda inputs: predict(np.asarray(inputs).reshape(len(inputs), -1))


def gives_probabilities(target: Target, split: Split) -> bool:
    """Whether a module ends in a softmax: another one over it would flatten every confidence."""
    if target.module is None:
        return False
    total = len(split.pool)
    first = split.num_audited if split.num_audited < total else 0
    rows = np.arange(first, min(total, first + _PROBED))
    answers = answer(target, np.asarray(split.pool.take(rows).inputs))
    return bool(
        answers.shape[1] > 1
        and (answers >= 0).all()
        and (answers <= 1).all()
        and (np.abs(answers.sum(axis=1) - 1) <= _SUM_TOLERANCE).all()
    )


def as_logits(target: Target, device: str) -> Target:
    """The same module, answering the logarithms of its probabilities."""
    assert target.module is not None
    logs = module_target(_logs_of(target.module), device=device)
    # weights and architecture are those of a module that answers logits; its answers are not
    return replace(logs, key=None if target.key is None else entry_key("logarithms", target.key))


def answering_logs(build: Build) -> Build:
    """Build modules that answer the logarithms of their probabilities."""
    return lambda seed: _logs_of(build(seed))


def _logs_of(module: nn.Module) -> nn.Module:
    """A copy that answers logarithms. A hook: a wrapper would change the paths of the layers."""
    owned = copy.deepcopy(module)
    owned.register_forward_hook(_log_hook)
    return owned


def _log_hook(module: nn.Module, inputs: Any, answers: torch.Tensor) -> torch.Tensor:
    return answers.clamp_min(_LEAST_PROBABILITY).log()


class AskedTrainer:
    """A user's trainer whose models are asked in the way that the target is."""

    def __init__(self, trainer: Trainer, kind: TaskName, *, probabilities: bool) -> None:
        self.description, self.key = trainer.description, trainer.key
        self._trainer, self._kind, self._probabilities = trainer, kind, probabilities

    def train(self, jobs: Sequence[Job], on_model: OnModel) -> None:
        """Train a model for each job."""
        self._trainer.train(jobs, lambda number, model: on_model(number, self._asked(model)))

    def _asked(self, model: Any) -> Any:
        if isinstance(model, nn.Module):
            return _logs_of(model) if self._probabilities else model
        return recognise(model, "cpu", self._kind)[0]


def recognise_task(target: Target, pool: Records, num_audited: int) -> Task:
    """What the model is for, and the scale of its residuals (auxiliary records only).

    Raises:
        InputError: If labels lie outside its classes, or no auxiliary record fixes the scale.
    """
    if pool.targets is None:
        width = answer(target, np.asarray(pool.inputs[:1])).shape[1]
        if width == 1:
            raise InputError(
                "answers of the model",
                (1, 1),
                "the labels are classes, and one output tells no classes apart",
                'If it predicts a number, say task = "regression"; if one of two classes, give a '
                "model with two outputs.",
            )
        outside = np.flatnonzero(pool.labels >= width)
        if outside.size:
            raise InputError(
                f"label of record {pool.ids[outside[0]]}",
                int(pool.labels[outside[0]]),
                f"the model has classes 0 to {width - 1}",
                "Use the labels that the model was trained with.",
            )
        return Task("classification", width)
    rows = np.arange(num_audited, len(pool))
    if len(rows) < 2:
        raise InputError(
            "auxiliary",
            len(rows),
            "a regression audit needs auxiliary records to fix the scale of residuals",
            "Give auxiliary=..., or fewer members and non-members.",
        )
    scale = float(np.sqrt(np.mean(residuals(target, pool.take(rows)) ** 2)))
    return Task("regression", 2, max(scale, 1e-12))


def model_builder(model: Any, factory: Callable[[], Any] | str | None) -> Build | None:
    """How to make a fresh module of the model's kind; None where that is not known.

    Args:
        factory: Builds the module, or its "module:function"; the model tells if not given.
    """
    if factory is not None:
        made = load_attribute(factory, "model_factory") if isinstance(factory, str) else factory
        return factory_builder(made)
    return fresh_builder(model) if isinstance(model, nn.Module) else None


def check_same_architecture(model: nn.Module, build: Build) -> None:
    """Refuse a factory of other modules than the model.

    Raises:
        InputError: Naming the first parameter that differs.
    """
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    made = {name: tuple(p.shape) for name, p in build(0).named_parameters()}
    for name in [*wanted, *made]:
        if wanted.get(name) != made.get(name):
            raise InputError(
                f"model_factory, parameter {name!r}",
                made.get(name),
                f"the model has {wanted.get(name)}",
                "Name the factory (and settings) that the model was built with.",
            )

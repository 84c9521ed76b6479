"""The model that is attacked: weights in hand, or only its answers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.devices import one_thread
from attacks.shadows.identity import module_digest
from fl_audit.errors import AuditError, InputError
from fl_audit.records import Records

Predict = Callable[[NDArray[np.float32]], NDArray[np.floating]]
_LEAST = 1e-12  # probabilities below it count as it: a model may answer exactly 0 or 1
_SUM_TOLERANCE = 1e-3  # of a record's probabilities: half precision rounds by as much
_MAX_PHI = 30.0  # nats; where a regression model is right to the last bit
UNNAMED = "unnamed "  # begins the key of a model without an identity; for memory only
_SERIAL = itertools.count()
_QUERY_BYTES = 1 << 22  # inputs of one query: 4 MB; larger ones are slower for CNNs


@dataclass(frozen=True, slots=True)
class Task:
    """What the model is for.

    A regression model is attacked through its likelihood: with residual e = answer - target and
    scale s, p = exp(-e^2 / (2 s^2)) takes the place of the probability of the true class, so that
    every attack on probabilities works on squared errors. `s` is the root mean square of the
    target model's residuals on auxiliary records, fixed before any audited record is looked at.

    Attributes:
        num_classes: Width of the logits; 2 for regression ("as predicted" and "not").
        scale: s, in units of the regression target.
    """

    kind: Literal["classification", "regression"]
    num_classes: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A model that answers inputs, with its weights where they are known.

    Attributes:
        predict: Inputs (n, ...) to raw answers (n, c): logits, or a regression's value (n, 1).
        module: In eval mode, without gradients; None for a model that can only be asked.
        key: Digest of weights, attributes and code; None where there is nothing to digest or it
            cannot be told, and then no answer is kept on disk.
    """

    predict: Predict
    module: nn.Module | None = None
    key: str | None = None


def module_target(module: nn.Module, *, device: str = "cpu") -> Target:
    """A torch module as target. The module itself is copied, and its mode does not matter."""
    owned = copy.deepcopy(module).to(device).eval().requires_grad_(False)

    def predict(inputs: NDArray[np.float32]) -> NDArray[np.floating]:
        with one_thread(), torch.no_grad():
            answers: torch.Tensor = owned(torch.from_numpy(np.asarray(inputs)).to(device))
        found: NDArray[np.floating] = answers.cpu().numpy()
        return found

    return Target(predict, owned, module_digest(owned))


def callable_target(
    predict: Callable[[NDArray[np.float32]], Any],
    *,
    kind: Literal["classification", "regression"] = "classification",
) -> Target:
    """Any function from records to class probabilities (n, c): black-box attacks only.

    The logarithm of a probability, of at least 1e-12, serves as its logit. A regression's numbers,
    (n,) or (n, 1), are taken as they are.
    """
    returns = "probabilities (n, classes)" if kind == "classification" else "numbers (n,)"

    def answers_of(inputs: NDArray[np.float32]) -> NDArray[np.floating]:
        try:
            answers = np.asarray(predict(inputs), dtype=np.float64)
        except Exception as error:  # users' code raises anything
            raise InputError(
                "model",
                getattr(predict, "__name__", type(predict).__name__),
                f"raised {type(error).__name__}: {error}",
                f"It must take inputs of shape (n, ...) and return {returns}.",
            ) from error
        if kind == "regression":
            return answers
        if answers.ndim != 2:
            raise InputError(
                "answers of the model",
                answers.shape,
                "a callable must answer one probability a class, (n, classes)",
                'Return predict_proba; for numbers to predict, say task = "regression".',
            )
        if (answers < -1e-6).any() or (answers > 1 + 1e-6).any():
            raise InputError(
                "model",
                float(answers.min()),
                "a callable must answer probabilities between 0 and 1",
                "Return predict_proba, or pass the torch module itself; for numbers to predict, "
                'say task = "regression".',
            )
        sums = answers.sum(axis=1)
        wrong = np.flatnonzero(np.abs(sums - 1) > _SUM_TOLERANCE)
        if wrong.size:
            raise InputError(
                "model",
                round(float(sums[wrong[0]]), 6),
                "the probabilities that a callable answers for a record must sum to 1",
                "Return one probability for each of the classes, which exclude each other.",
            )
        return np.log(np.clip(answers, _LEAST, 1))

    return Target(answers_of)


def ask(target: Target, records: Records, task: Task) -> NDArray[np.float64]:
    """Logits of a model on records, shape (n, num_classes), float64; true class = label.

    Raises:
        InputError: If an answer has the wrong shape, or is not finite (names the record).
    """
    answers = [
        answer(target, records.inputs[rows]) for rows in records.blocks(num_bytes=_QUERY_BYTES)
    ]
    found = np.concatenate(answers) if answers else np.empty((0, task.num_classes))
    if task.kind == "regression":
        return _likelihoods(found, records, task)
    if found.shape != (len(records), task.num_classes):
        raise InputError(
            "answers of the model",
            found.shape,
            f"{len(records)} records of {task.num_classes} classes need "
            f"({len(records)}, {task.num_classes})",
            "Check the model's output and the labels: classes are 0 to c - 1.",
        )
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if bad.size:
        raise InputError(
            f"logits of record {records.ids[bad[0]]}",
            found[bad[0]],
            "must be finite",
            "The model answers NaN or infinity: check its weights and this record.",
        )
    return found


def residuals(target: Target, records: Records) -> NDArray[np.float64]:
    """Answer minus target of a regression model, shape (n,), in units of the target."""
    assert records.targets is not None
    parts = [
        answer(target, records.inputs[rows]) for rows in records.blocks(num_bytes=_QUERY_BYTES)
    ]
    answers = np.concatenate(parts).reshape(len(records), -1)
    if answers.shape[1] != 1:
        raise InputError(
            "answers of the model",
            answers.shape,
            "a regression model gives one number a record",
            "Audit one output at a time.",
        )
    return answers[:, 0] - records.targets.astype(np.float64)


def answer(target: Target, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Raw answers, shape (n, c), float64.

    Raises:
        InputError: If the model refuses the inputs, or answers another number of them.
    """
    try:
        found = np.asarray(target.predict(inputs), dtype=np.float64)
    except AuditError:
        raise
    except Exception as error:  # users' modules raise anything
        raise _refusal(error, inputs) from error
    if found.shape[:1] != np.shape(inputs)[:1]:
        raise InputError(
            "answers of the model",
            found.shape,
            f"must have one row for each of {len(inputs)} inputs",
            "Return an array of shape (n, classes).",
        )
    return found.reshape(len(found), -1)


def _refusal(error: Exception, inputs: NDArray[np.float32]) -> InputError:
    """What to do about a model that cannot be asked."""
    text = str(error)
    if isinstance(error, AttributeError) and "has no attribute 'cpu'" in text:
        return InputError(
            "answers of the model",
            text,
            "a module must return one tensor, its logits",
            "Wrap it in a module whose forward returns the logits alone, not a tuple or a dict.",
        )
    remedy = "Give records of the shape that the model was trained on."
    if any(word in text for word in ("dtype", "scalar type", "FloatTensor")):
        remedy = (
            "Inputs are always given as float32: convert them in the module's forward "
            "(inputs.long(), inputs.double()), or audit module.float()."
        )
    return InputError(
        "inputs",
        np.shape(inputs),
        f"the model refuses them ({type(error).__name__}: {text})",
        remedy,
    )


def _likelihoods(answers: NDArray[np.float64], records: Records, task: Task) -> NDArray[np.float64]:
    assert records.targets is not None
    if answers.shape[1] != 1:
        raise InputError(
            "answers of the model",
            answers.shape,
            "a regression model gives one number a record",
            "Audit one output at a time.",
        )
    half = 0.5 * ((answers[:, 0] - records.targets) / task.scale) ** 2
    bad = np.flatnonzero(~np.isfinite(half))
    if bad.size:
        raise InputError(
            f"answer for record {records.ids[bad[0]]}",
            answers[bad[0]],
            "must be finite",
            "The model answers NaN or infinity: check its weights and this record.",
        )
    with np.errstate(divide="ignore"):
        phi = -half - np.log(-np.expm1(-half))  # log p - log(1 - p)
    phi = np.clip(phi, -1e6, _MAX_PHI)
    return np.stack([phi, np.zeros_like(phi)], axis=1)


def as_target(model: Any, task: Task, *, device: str = "cpu") -> Target:
    """A trained model, of whatever kind, as something to ask."""
    if isinstance(model, nn.Module):
        target = module_target(model, device=device)
    else:
        target = model if isinstance(model, Target) else callable_target(model, kind=task.kind)
    # without an identity its answers may be kept in memory, under a name of its own
    return target if target.key else replace(target, key=f"{UNNAMED}{next(_SERIAL)}")

"""Signals: one number a record, from a model's answers. Higher = more likely a member.

All are pure functions of logits (..., n, classes) and labels (n,); leading axes (models) are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from fl_audit.errors import InputError, UnknownNameError
from fl_audit.factories import load_attribute

Logits = NDArray[np.float64]
_BLOCK = 8192  # records at once
Labels = NDArray[np.int64]
Signal = Callable[[Logits, Labels], NDArray[np.float64]]


def check_logits(logits: Logits, labels: Labels) -> None:
    """Refuse logits that are not finite, and labels that are no classes.

    Raises:
        InputError: Naming the first record.
    """
    if logits.ndim < 2 or logits.shape[-2] != len(labels):
        raise InputError(
            "logits",
            logits.shape,
            f"must have shape (..., {len(labels)}, classes): one row a record",
            "Give one label per row of logits.",
        )
    if not all(np.isfinite(values).all() for values in logits.reshape(-1, *logits.shape[-2:])):
        bad = np.argwhere(~np.isfinite(logits).all(axis=-1))
        raise InputError(
            f"logits of record {bad[0][-1]}",
            logits[tuple(bad[0])],
            "must be finite",
            "The model answers NaN or infinity: check that its weights are finite.",
        )
    outside = np.flatnonzero((labels < 0) | (labels >= logits.shape[-1]))
    if outside.size:
        raise InputError(
            f"label of record {outside[0]}",
            int(labels[outside[0]]),
            f"must be a class from 0 to {logits.shape[-1] - 1}",
            "Use the labels that the model was trained with.",
        )


def true_log_probability(
    logits: Logits, labels: Labels, *, temperature: float = 1.0
) -> NDArray[np.float64]:
    """log p of the true class, nats, (..., n): minus the cross-entropy loss.

    From log p - log(1 - p), so that it keeps its digits, and records their ranks, where p rounds
    to 1.
    """
    found = np.empty(logits.shape[:-1])
    flat, out = logits.reshape(-1, *logits.shape[-2:]), found.reshape(-1, logits.shape[-2])
    for values, row in zip(flat, out, strict=True):  # a model at a time: no second copy of all
        scaled = values / temperature if temperature != 1 else values
        with np.errstate(invalid="ignore"):  # NaN stays NaN
            row[:] = -np.logaddexp(0, -logit_confidence(scaled, labels))
    return found


def logit_confidence(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """log p - log(1 - p) of the true class, nats, (..., n); near normal over models.

    Computed without forming p: the true logit minus the log-sum-exp of the others.

    References:
        Carlini et al., IEEE S&P 2022, section V-B. https://arxiv.org/abs/2112.03570
    """
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which whoever scores refuses
        found: NDArray[np.float64] = _of_class(logits, labels) - logsumexp(logits, without=labels)
    return found


def confidence(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """Probability of the answer that the model gives, (..., n); needs no label."""
    best: NDArray[np.float64] = np.exp(logits.max(axis=-1) - logsumexp(logits))
    return best


def negative_entropy(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """Minus the entropy of the answer, nats, (..., n); needs no label."""
    log_p = log_softmax(logits, axis=-1)
    found: NDArray[np.float64] = (np.exp(log_p) * log_p).sum(axis=-1)
    return found


def negative_modified_entropy(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """Minus the modified entropy, nats, (..., n): low only for a confident and right answer.

    Mentr = -(1 - p_y) log p_y - sum over other classes of p_i log(1 - p_i).

    References:
        Song & Mittal, USENIX Security 2021, equation 6. https://arxiv.org/abs/2003.10595
    """
    found = np.empty(logits.shape[:-1])
    flat, out = logits.reshape(-1, *logits.shape[-2:]), found.reshape(-1, logits.shape[-2])
    for number, values in enumerate(flat):
        out[number] = _negative_modified_entropy(values, labels)
    return found


def _negative_modified_entropy(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """Of one model. log(1 - p) of the top class is taken from its log-odds: p may round to 1."""
    p = np.exp(log_softmax(logits, axis=-1))
    top = logits.argmax(axis=-1)
    rows = np.arange(len(labels))
    p[rows, top], of_top = 0.0, p[rows, top]
    terms = p * np.log1p(-p)
    terms[rows, top] = -of_top * np.logaddexp(0, logit_confidence(logits, top))
    terms[rows, labels] = 0.0
    phi = logit_confidence(logits, labels)
    true = -np.exp(-np.logaddexp(0, phi)) * np.logaddexp(0, -phi)
    found: NDArray[np.float64] = true + terms.sum(axis=-1)
    return found


def logsumexp(logits: Logits, *, without: Labels | None = None) -> NDArray[np.float64]:
    """log of the sum of exp over classes, (..., n); of all classes but one a record if given.

    In blocks that stay in the processor's cache.
    """
    found = np.empty(logits.shape[:-1])
    flat, out = logits.reshape(-1, *logits.shape[-2:]), found.reshape(-1, logits.shape[-2])
    for number in range(len(flat)):
        for start in range(0, len(out[number]), _BLOCK):
            rows = slice(start, start + _BLOCK)
            values = torch.from_numpy(np.ascontiguousarray(flat[number, rows]))
            if without is not None:
                values = values.scatter(1, torch.from_numpy(without[rows])[:, None], -torch.inf)
            out[number, rows] = torch.logsumexp(values, 1).numpy()
    return found


def is_right(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """1 where the largest logit is the true class's, else 0, (..., n)."""
    right: NDArray[np.float64] = (logits.argmax(axis=-1) == labels).astype(np.float64)
    return right


SIGNALS: dict[str, Signal] = {
    "loss": true_log_probability,
    "logit": logit_confidence,
    "confidence": confidence,
    "entropy": negative_entropy,
    "modified_entropy": negative_modified_entropy,
}


def load_signal(name: str) -> Signal:
    """A signal by name, or a user's `"module:function"` of (logits, labels).

    Raises:
        UnknownNameError: If it is neither.
    """
    if ":" not in name:
        if name not in SIGNALS:
            raise UnknownNameError("signal", name, [*SIGNALS, "module:function"])
        return SIGNALS[name]
    function = load_attribute(name, "signal")

    def checked(logits: Logits, labels: Labels) -> NDArray[np.float64]:
        try:
            found = np.asarray(function(logits, labels), dtype=np.float64)
        except Exception as error:  # users' code raises anything
            raise InputError(
                "signal",
                name,
                f"raised {type(error).__name__}: {error}",
                "It is called with logits (..., n, classes) and labels (n,).",
            ) from error
        if found.shape != logits.shape[:-1] or not np.isfinite(found).all():
            raise InputError(
                "signal",
                name,
                f"gave shape {found.shape} for logits {logits.shape}, or a value not finite",
                "Return one finite number a record, shape logits.shape[:-1]; higher = member.",
            )
        return found

    return checked


def _index(logits: Logits, labels: Labels) -> NDArray[np.int64]:
    shape = (*logits.shape[:-1], 1)
    return np.broadcast_to(labels[:, None], shape)


def _of_class(values: Logits, labels: Labels) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values[..., np.arange(len(labels)), labels]
    return found

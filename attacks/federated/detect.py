"""Could a client have noticed? What active adversaries leave in the models that clients receive.

Three checks, each on what one client has (and one on what clients tell each other):

- *models differ*: clients of one round received different models. Needs a channel between clients
  that the server does not control: digests that pass through the server prove nothing.
- *planted rows*: rows of a dense layer that are copies of one another with biases in steps (an
  imprint of the inputs), or rows whose norm or bias is far outside their layer's scale (traps for
  single records).
- *loss jump*: the received model is suddenly worse on the client's own records.

References:
    Boenisch et al., "When the curious abandon honesty: federated learning is not private", EuroS&P
    2023, and Fowl et al., "Robbing the fed", ICLR 2022, for what planted rows look like.
    https://arxiv.org/abs/2110.13057
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_audit.errors import InputError
from fl_audit.files import Arrays, sha256_array

Check = Literal["models-differ", "identical-rows", "row-out-of-scale", "loss-jump"]
_MAD = 1.4826  # median absolute deviation -> standard deviation of a Gaussian
_DEAD = 1e-3  # of the median norm: a row so short measures nothing
_BLOCK = 1024  # rows of a layer compared at once


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a client could see.

    Attributes:
        check: Which check saw it.
        round: Server round, from 1.
        client: Partition id of the client that could have seen it.
        what: For a person: where, how much, against what limit.
        value: Size of what was seen, in the check's own unit: models (models-differ), rows
            (identical-rows), multiples of the usual size (row-out-of-scale), nats (loss-jump).
    """

    check: Check
    round: int
    client: int
    what: str
    value: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Where an observation becomes a finding. The defaults raise no alarm on honest federations.

    Attributes:
        cosine: Rows at least so parallel are copies.
        rows: So many copies with different biases are an imprint.
        width: Narrower layers are not looked at: short rows are parallel by chance.
        scale: A row whose norm is so many times the layer's median is out of scale ...
        deviations: ... if it is also so many robust standard deviations off, on a log scale.
        bias: A bias so many times the largest that initialisation gives to such a row is.
        memory: Rounds of the past that a loss is compared with.
        rise: A loss jump is a rise above the largest loss of these rounds, in nats, by this ...
        share: ... and by this share of that loss ...
        spread: ... and by this many robust standard deviations of these losses.
    """

    cosine: float = 0.999
    rows: int = 8
    width: int = 8
    scale: float = 8.0
    deviations: float = 6.0
    bias: float = 4.0
    memory: int = 3
    rise: float = 0.1
    share: float = 0.1
    spread: float = 3.0


DEFAULT = Limits()


def model_digest(arrays: Arrays) -> str:
    """sha256 over names, dtypes, shapes and bytes of a model, whatever the order of names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype.str} {array.shape} {sha256_array(array)}\n".encode())
    return sha.hexdigest()


def differing_models(digests: Mapping[int, str], *, server_round: int) -> list[Finding]:
    """Clients whose model differs from that of most others in the same round.

    It needs a channel that the server does not control: whoever relays the digests can change
    them. Where no model has most clients, every client is named.

    Args:
        digests: Client -> digest of the model it received in this round.
    """
    counts = Counter(digests.values())
    if len(counts) < 2:
        return []
    (common, most), (_, second) = counts.most_common(2)
    odd = [c for c, digest in sorted(digests.items()) if most == second or digest != common]
    return [
        Finding(
            "models-differ",
            server_round,
            client,
            f"{len(digests)} clients received {len(counts)} different models; this one's went to "
            f"{counts[digests[client]]} of them",
            float(len(counts)),
        )
        for client in odd
    ]


def planted_rows(
    arrays: Arrays, *, server_round: int, client: int, limits: Limits = DEFAULT
) -> list[Finding]:
    """Copies of one row with biases in steps, and rows far outside their layer's scale.

    Args:
        arrays: The model that a client received. Dense layers are its two-dimensional arrays that
            end in "weight", with the "bias" of the same name beside them.
    """
    findings = []
    for layer, weight, bias in _dense_layers(arrays, limits.width):
        for what, value in [*_copies(weight, bias, limits)]:
            findings.append(
                Finding("identical-rows", server_round, client, f"layer {layer!r}: {what}", value)
            )
        for what, value in [*_out_of_scale(weight, bias, limits)]:
            findings.append(
                Finding("row-out-of-scale", server_round, client, f"layer {layer!r}: {what}", value)
            )
    return findings


def loss_jump(
    losses: Sequence[float], *, server_round: int, client: int, limits: Limits = DEFAULT
) -> Finding | None:
    """Whether the last loss is suddenly above those of the rounds before.

    Args:
        losses: Mean cross-entropy of the models received so far on the client's own records, nats,
            in the order of rounds; not finite counts as a jump. The first has nothing to be
            compared with.
    """
    if len(losses) < 2:
        return None
    past = np.asarray(losses[-1 - limits.memory : -1], dtype=np.float64)
    past = past[np.isfinite(past)]
    now = float(losses[-1])
    if not np.isfinite(now):
        what = "the loss on its own records is not finite"
        return Finding("loss-jump", server_round, client, what, float(np.finfo(np.float64).max))
    if not past.size:
        return None
    highest = float(past.max())
    deviation = _MAD * float(np.median(np.abs(past - np.median(past))))
    limit = highest + max(limits.rise, limits.share * highest, limits.spread * deviation)
    if now <= limit:
        return None
    what = (
        f"the loss on its own records is {now:.3g} nats, after at most {highest:.3g} in the last "
        f"{past.size} rounds (limit {limit:.3g})"
    )
    return Finding("loss-jump", server_round, client, what, now - highest)


def could_notice(
    received: Mapping[int, Mapping[int, Arrays]],
    own_losses: Mapping[int, Mapping[int, float]] | None = None,
    *,
    limits: Limits = DEFAULT,
) -> list[Finding]:
    """Everything that clients could have seen in the models they received.

    Args:
        received: Round -> client -> the model it received.
        own_losses: Round -> client -> mean loss of that model on the client's own records, nats.

    Returns:
        By round, client and check. The check of differing models assumes the channel of
        `differing_models`.
    """
    findings: list[Finding] = []
    history: dict[int, list[float]] = {}
    for number in sorted(received):
        digests = {client: model_digest(model) for client, model in received[number].items()}
        findings += differing_models(digests, server_round=number)
        seen: dict[str, list[Finding]] = {}
        for client, digest in sorted(digests.items()):
            if digest not in seen:
                model = received[number][client]
                seen[digest] = planted_rows(
                    model, server_round=number, client=client, limits=limits
                )
            findings += [_for(found, client) for found in seen[digest]]
        for client, loss in sorted((own_losses or {}).get(number, {}).items()):
            history.setdefault(client, []).append(loss)
            jump = loss_jump(history[client], server_round=number, client=client, limits=limits)
            findings += [] if jump is None else [jump]
    return sorted(findings, key=lambda f: (f.round, f.client, f.check))


def check_limits(limits: Limits) -> None:
    """Refuse limits under which everything, or nothing, is a finding.

    Raises:
        InputError: Naming the first.
    """
    for name, least in (("rows", 2), ("width", 2), ("memory", 1)):
        if getattr(limits, name) < least:
            raise InputError(
                f"limits.{name}", getattr(limits, name), f"must be at least {least}", "Raise it."
            )
    if not 0 < limits.cosine <= 1:
        raise InputError("limits.cosine", limits.cosine, "must lie in (0, 1]", "Try 0.999.")
    for name in ("scale", "deviations", "bias", "rise", "share", "spread"):
        value = getattr(limits, name)
        if not value >= 0:
            raise InputError(f"limits.{name}", value, "must not be negative", "Raise it.")


def _for(found: Finding, client: int) -> Finding:
    return Finding(found.check, found.round, client, found.what, found.value)


def _dense_layers(
    arrays: Arrays, width: int
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64] | None]]:
    """(name, weight (out, in), bias (out,) or None) of the layers wide enough to judge."""
    for name in arrays:
        weight = arrays[name]
        is_dense = weight.ndim == 2 and name.endswith("weight")
        if not is_dense or min(weight.shape) < 2 or weight.shape[1] < width:
            continue
        if not np.isfinite(weight).all():
            continue
        bias = arrays.get(name.removesuffix("weight") + "bias")
        fits = bias is not None and bias.shape == weight.shape[:1] and np.isfinite(bias).all()
        yield (
            name.removesuffix(".weight"),
            weight.astype(np.float64),
            bias.astype(np.float64) if fits and bias is not None else None,
        )


def _copies(
    weight: NDArray[np.float64], bias: NDArray[np.float64] | None, limits: Limits
) -> Iterator[tuple[str, float]]:
    """The largest group of rows that are copies of one another, if their biases differ."""
    if bias is None:
        return
    norms = np.linalg.norm(weight, axis=1)
    rows = np.flatnonzero(norms > 0)
    unit = weight[rows] / norms[rows, None]
    best = np.empty(0, dtype=np.int64)
    for start in range(0, len(rows), _BLOCK):
        alike = unit[start : start + _BLOCK] @ unit.T >= limits.cosine
        most = int(alike.sum(axis=1).argmax())
        if alike[most].sum() > len(best):
            best = rows[alike[most]]
    if len(best) < limits.rows:
        return
    offsets = bias[best] / norms[best]  # where each row switches on, along the common direction
    if len(np.unique(offsets)) < limits.rows:  # dead or tied units: nothing is sorted into bins
        return
    steps = np.diff(offsets)
    order = "sorted" if (steps >= 0).all() or (steps <= 0).all() else "unsorted"
    what = f"{len(best)} of {len(weight)} rows are copies with {order}, different biases"
    yield what, float(len(best))


def _out_of_scale(
    weight: NDArray[np.float64], bias: NDArray[np.float64] | None, limits: Limits
) -> Iterator[tuple[str, float]]:
    """The row, and the bias, that are furthest outside their layer's scale."""
    norms = np.linalg.norm(weight, axis=1)
    common = float(np.median(norms))
    if common == 0:
        return
    logs = np.log(np.maximum(norms, common * 1e-6) / common)
    deviation = _MAD * float(np.median(np.abs(logs)))
    worst = int(logs.argmax())
    if logs[worst] > max(np.log(limits.scale), limits.deviations * deviation):
        times = float(np.exp(logs[worst]))
        yield f"the norm of row {worst} is {times:.3g} times the layer's median", times
    if bias is None:
        return
    # drawn as usual, uniform up to 1/sqrt(width), row and bias stand as 1 to sqrt(3/width) at most
    usual = np.sqrt(3 / weight.shape[1])
    # a row may be shortened with its bias, so each is judged by its own; dead ones stay honest
    is_alive = norms > _DEAD * common
    times_usual = np.where(is_alive, np.abs(bias), 0.0) / np.maximum(norms, _DEAD * common) / usual
    worst, many = int(times_usual.argmax()), int((times_usual > limits.bias).sum())
    if many:
        times = float(times_usual[worst])
        yield (
            f"{many} biases are large for their rows; that of row {worst} is {times:.3g} times "
            "what initialisation gives",
            times,
        )

"""Honest local training: FedAvg's epochs or FedSGD's single step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_audit.local_training import LocalTraining
from fl_audit.records import Records


def batches(
    num_examples: int, training: LocalTraining, *, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Rows of each batch of one round, in order. The scorer draws the same ones to know the truth.

    `fedavg`: every example once an epoch, reshuffled. `fedsgd`: one batch without replacement.
    """
    size = min(training.batch_size, num_examples)
    if training.algorithm == "fedsgd":
        yield rng.permutation(num_examples)[:size]
        return
    for _ in range(training.local_epochs):
        order = rng.permutation(num_examples)
        for start in range(0, num_examples, size):
            yield order[start : start + size]


def planned_batches(
    num_examples: int, training: LocalTraining, *, rng: np.random.Generator, share: float = 1.0
) -> list[NDArray[np.int64]]:
    """The batches that a client really does: a straggler stops after a share of its steps."""
    planned = list(batches(num_examples, training, rng=rng))
    return planned[: max(1, round(share * len(planned)))]


def train(
    model: nn.Module,
    records: Records,
    training: LocalTraining,
    *,
    server_round: int,
    rng: np.random.Generator,
    share: float = 1.0,
    device: str = "cpu",
) -> tuple[float, int]:
    """Train `model` in place by SGD on mean cross-entropy.

    Args:
        model: The global model, on entry.
        records: The client's data.
        training: How.
        server_round: Round number, from 1; the learning rate may depend on it.
        share: Share of the steps to do: a straggler stops early.

    Returns:
        The mean training loss over the examples seen (nats, without the proximal term), and how
        many different examples were used.
    """
    model.to(device).train()
    inputs = torch.from_numpy(records.inputs).to(device)
    labels = torch.from_numpy(records.labels).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.learning_rate_in(server_round),
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    start = [p.detach().clone() for p in model.parameters()] if training.proximal_mu else []
    total, seen, rows_seen = 0.0, 0, set[int]()
    for rows in planned_batches(len(records), training, rng=rng, share=share):
        index = torch.from_numpy(rows).to(device)
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(inputs[index]), labels[index])
        whole: torch.Tensor = loss + _proximal(model, start, training.proximal_mu)
        whole.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(rows)
        seen += len(rows)
        rows_seen.update(rows.tolist())
    return total / seen, len(rows_seen)


def _proximal(model: nn.Module, start: list[torch.Tensor], mu: float) -> torch.Tensor:
    """mu/2 times the squared distance to the global model (Li et al., FedProx, MLSys 2020)."""
    pairs = zip(model.parameters(), start, strict=False)  # `start` is empty without the term
    distances = [(p - q).square().sum() for p, q in pairs]
    return torch.stack(distances).sum() * (mu / 2) if distances else torch.zeros(())


def evaluate(
    model: nn.Module, records: Records, *, device: str = "cpu"
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Cross-entropy of each record (nats), and whether it is classified right, in eval mode."""
    model.to(device).eval()
    labels = torch.from_numpy(records.labels).to(device)
    with torch.no_grad():
        logits = model(torch.from_numpy(records.inputs).to(device))
    losses = nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    return losses.cpu().numpy(), (logits.argmax(1) == labels).cpu().numpy()

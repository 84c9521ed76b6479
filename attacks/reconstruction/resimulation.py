"""Does the update come about as assumed? Local training played again, and compared.

An update is read as a gradient by an assumption: learning rate, steps, batch size, which weights
it started from. Where that is wrong, inversion searches for data that does not exist, and its
failure says nothing about the federation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.reconstruction.optimisation.simulation import effective_steps
from fl_audit.local_training import LocalTraining
from fl_audit.records import Records
from fl_audit.targets import Target
from fl_audit.trace import TraceView
from fl_audit.trace.query import load_weights

Values = NDArray[np.float64]
_WRONG = 0.05  # rounding explains less, one step of SGD explains the rest


def simulated_update(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    training: LocalTraining,
    rate: float,
    *,
    rng: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """Parameters after minus before a client's local training on these records.

    Args:
        model: With the received weights, in the mode in which clients train; not changed.
        rng: Shuffles each epoch.
    """
    own = copy.deepcopy(model)
    start = {name: p.detach().clone() for name, p in own.named_parameters()}
    optimiser = torch.optim.SGD(
        own.parameters(), lr=rate, momentum=training.momentum, weight_decay=training.weight_decay
    )
    num = len(inputs)
    size = num if training.algorithm == "fedsgd" else min(num, training.batch_size)
    epochs = 1 if training.algorithm == "fedsgd" else training.local_epochs
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(num)).to(inputs.device)
        for rows in torch.split(order, size):
            optimiser.zero_grad(set_to_none=True)
            loss: torch.Tensor = torch.nn.functional.cross_entropy(own(inputs[rows]), labels[rows])
            if training.proximal_mu:
                pairs = [(p, start[name]) for name, p in own.named_parameters()]
                away = torch.stack([(p - q).square().sum() for p, q in pairs]).sum()
                loss = loss + training.proximal_mu / 2 * away
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return {name: p.detach() - start[name] for name, p in own.named_parameters()}


def pseudo_gradient_error(
    model: torch.nn.Module,
    records: Records,
    training: LocalTraining,
    server_round: int,
    *,
    num_examples: int,
    rng: np.random.Generator,
) -> float | None:
    """How far several local steps, read as one gradient, are from the gradient at the start.

    Measured on the attacker's own records.

    Returns:
        Norm of the difference as a share of the gradient's; None if there are too few records, or
        the round's learning rate is 0.
    """
    rate = training.learning_rate_in(server_round)
    if len(records) < num_examples or rate == 0:
        return None
    device = next(model.parameters()).device
    rows = rng.permutation(len(records))[:num_examples]
    inputs = torch.from_numpy(records.inputs[rows]).to(device)
    labels = torch.from_numpy(records.labels[rows]).to(device)
    update = simulated_update(model, inputs, labels, training, rate, rng=rng)
    own = copy.deepcopy(model)
    loss = torch.nn.functional.cross_entropy(own(inputs), labels)
    parameters = dict(own.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    scale = rate * effective_steps(training.steps(num_examples), training.momentum)
    wrong, whole = 0.0, 0.0
    for (name, weight), gradient in zip(parameters.items(), found, strict=True):
        true = torch.zeros_like(weight) if gradient is None else gradient
        read = -update[name] / scale - training.weight_decay * weight.detach()
        wrong += float((read - true).double().square().sum())
        whole += float(true.double().square().sum())
    return float(np.sqrt(wrong / whole)) if whole > 0 else None


def resimulation_error(
    model: torch.nn.Module,
    records: Records,
    training: LocalTraining,
    server_round: int,
    *,
    update: Mapping[str, Values],
    rng: np.random.Generator,
) -> float:
    """How far the recorded update is from that of the same client played again on its true records.

    For the scorer, which knows them. 0 up to rounding for one step; for several, the order in
    which the client went through its records is not known, and part of the distance is that.

    Returns:
        Norm of the difference as a share of the recorded update's.
    """
    device = next(model.parameters()).device
    again = simulated_update(
        model,
        torch.from_numpy(np.asarray(records.inputs)).to(device),
        torch.from_numpy(np.asarray(records.labels)).to(device),
        training,
        training.learning_rate_in(server_round),
        rng=rng,
    )
    wrong = sum(
        float(np.sum(np.square(update[name] - value.double().cpu().numpy())))
        for name, value in again.items()
    )
    whole = sum(float(np.sum(np.square(update[name]))) for name in again)
    return float(np.sqrt(wrong / whole)) if whole > 0 else float("inf")


def resimulation_note(view: TraceView, target: Target, *, rng: np.random.Generator) -> str:
    """What playing one recorded update again says of the assumptions behind an inversion.

    Args:
        target: What the client trained on in that round: for the scorer only.
        rng: Shuffles its epochs.
    """
    training = view.local_training(target.client)
    model = view.architecture().train()
    load_weights(model, view.received(target.round, target.client))
    records = Records(np.arange(len(target.labels)), target.inputs, target.labels)
    error = resimulation_error(
        model,
        records,
        training,
        target.round,
        update=view.client_update(target.round, target.client),
        rng=rng,
    )
    several = training.steps(len(records)) > 1 and len(records) > 1
    order = ", part of which is the order of its steps, which is not known" if several else ""
    text = (
        f"Round {target.round}, client {target.client}, played again on its true records as "
        f"assumed: the update is off by {100 * error:.2g} % of its norm{order}."
    )
    if error > _WRONG and not several:
        text += (
            " Learning rate, batch, defence or model are not as assumed: that an inversion fails "
            "says nothing here."
        )
    return text

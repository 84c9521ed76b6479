"""Label counts from the last layer's gradient: how many examples of each class a batch held.

With mean cross-entropy, the bias gradient of class c is the batch mean of softmax_c less the share
of examples labelled c. If records of class k have mean softmax row M[k], a batch with class shares
s has the gradient g = (Mᵀ - I) s, which is solved for s >= 0 with sum 1. M comes from auxiliary
records run through the known model; without labels for them, one mean softmax stands for every
class.

References:
    Wainakh et al., "User-level label leakage from gradients in federated learning", PoPETs 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import softmax

from attacks.rounding import apportion
from fl_audit.attack_spec import AttackInput, AttackSpec, Reconstruction, Reconstructions
from fl_audit.errors import InputError
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace.query import load_weights

_SUM_WEIGHT = 1e3  # how strongly the shares are held to sum to 1


def label_counts(
    model: torch.nn.Module,
    gradients: Mapping[str, NDArray[np.float64]],
    batch_size: int,
    *,
    proxy_inputs: NDArray[np.float32],
    proxy_labels: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Number of examples of each class in the batch behind a gradient.

    Args:
        model: The model, with the weights at which the gradient was taken.
        gradients: Gradient of the mean cross-entropy by parameter name.
        batch_size: Examples in the batch; the counts sum to it.
        proxy_inputs: Inputs like the batch's (or noise) to estimate the softmax from, (n, ...).
        proxy_labels: Their classes, shape (n,), if known.

    Returns:
        Counts per class, shape (classes,).

    Raises:
        InputError: If the model's last layer has no bias, or the batch size is not positive.
    """
    if batch_size < 1:
        raise InputError(
            "batch_size", batch_size, "must be at least 1", "Give the size of the client's batch."
        )
    bias = np.asarray(gradients[last_bias(gradients)], dtype=np.float64)
    if not np.isfinite(bias).all():
        raise InputError("gradients", "NaN or infinity", "must be finite", "Leave it out.")
    probabilities = _softmax(model, proxy_inputs)
    by_class = mean_by_class(probabilities, proxy_labels, len(bias))
    return apportion(class_shares(bias, by_class), batch_size)


def class_shares(
    bias_grad: NDArray[np.float64], softmax_by_class: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Class shares s >= 0, sum 1, that best explain g = (Mᵀ - I) s in least squares.

    Args:
        bias_grad: g, shape (classes,).
        softmax_by_class: M, row k = mean softmax of records of class k, shape (classes, classes).
    """
    classes = len(bias_grad)
    system = np.vstack([softmax_by_class.T - np.eye(classes), np.full(classes, _SUM_WEIGHT)])
    shares, _ = nnls(system, np.append(bias_grad, _SUM_WEIGHT))
    result: NDArray[np.float64] = shares
    return result


def mean_by_class(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64] | None, classes: int
) -> NDArray[np.float64]:
    """M, shape (classes, classes); a class without proxies takes the mean over all proxies."""
    rows = np.repeat(probabilities.mean(axis=0)[None], classes, axis=0)
    for label in range(classes):
        if labels is not None and (labels == label).any():
            rows[label] = probabilities[labels == label].mean(axis=0)
    return rows


def _softmax(model: torch.nn.Module, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs).to(device)).double().cpu().numpy()
    result: NDArray[np.float64] = softmax(logits, axis=1)
    return result


def last_bias(gradients: Mapping[str, NDArray[np.float64]]) -> str:
    """Name of the last layer's bias.

    Raises:
        InputError: If the last parameter is none.
    """
    names = list(gradients)
    if not names or not names[-1].endswith("bias") or gradients[names[-1]].ndim != 1:
        raise InputError(
            "model",
            names[-1:],
            "its last parameter is not the bias of a dense layer",
            "Label counts are read from the last layer's bias gradient.",
        )
    return names[-1]


def _run(given: AttackInput) -> Reconstructions:
    view, auxiliary = given.view, given.auxiliary
    if auxiliary is None or len(auxiliary) == 0:
        raise InputError(
            "auxiliary",
            None,
            "records like the clients' are needed to estimate the model's softmax",
            "Set game.auxiliary to at least 1.",
        )
    claims, several = [], set()
    notes: list[str] = []
    module = view.architecture().to(given.device)
    for server_round in view.rounds:
        load_weights(module, view.global_model(server_round))
        for client in view.clients(server_round):
            local = view.local_training(client)
            if local.algorithm != "fedsgd":
                several.add(client)
                continue
            update = view.client_update(server_round, client)
            bias = last_bias(update)
            rate = local.learning_rate_in(server_round)
            if rate == 0:
                notes.append(f"Round {server_round}: the learning rate is 0, so nothing is sent.")
                continue
            try:
                batch_size = _batch_size(given, server_round, client)
            except InputError as error:
                notes.append(f"Round {server_round}, client {client}: {error.rule}.")
                continue
            counts = label_counts(
                module,
                {bias: -update[bias] / rate},
                batch_size,
                proxy_inputs=auxiliary.inputs,
                proxy_labels=auxiliary.labels,
            )
            claims.append(Reconstruction(server_round, client, label_counts=counts))
    if several:
        notes.append(
            f"Clients {sorted(several)} take several steps a round: no claim is made about them."
        )
    return Reconstructions(tuple(claims), tuple(notes))


def _batch_size(given: AttackInput, server_round: int, client: int) -> int:
    """A FedSGD client's batch: what it says it used, at most what it is configured to use."""
    configured = given.view.local_training(client).batch_size
    return min(configured, round(given.view.num_examples(server_round, client)))


ATTACK = AttackSpec(
    name="label_counts",
    kind="reconstruction",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    knows=Knowledge.LOCAL_TRAINING | Knowledge.EXAMPLE_COUNTS | Knowledge.AUXILIARY_DATA,
    run=_run,
    reference="https://doi.org/10.2478/popets-2022-0043",
    summary="The last layer's gradient gives away how many examples of each class were used",
)

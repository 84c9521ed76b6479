"""Label distribution: which classes a client holds, and how many, from the last layer's bias.

With mean cross-entropy the bias gradient of class c is the mean softmax_c of the batch less the
share of examples labelled c. The bias update of several local steps, divided by the learning rate
and the number of steps, is the mean of that along the path from the model received to the model
returned. So the softmax of auxiliary records, averaged along the straight line between the two,
stands for the clients'; what weight decay, the proximal term and momentum add is taken out.

References:
    Wainakh et al., "User-level label leakage from gradients in federated learning", PoPETs 2022
    (LLG); Zhao et al., "iDLG", 2020: a negative gradient means that the class is present.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import softmax

from attacks.federated.answers import RoundSettings, no_signal, notes_on
from attacks.federated.gradients import check_labels
from attacks.federated.rounds import SUM, chosen_rounds
from attacks.reconstruction.labels import class_shares, last_bias, mean_by_class
from fl_audit.attack_spec import AttackInput, AttackSpec
from fl_audit.errors import InputError
from fl_audit.estimates import LabelShare, LabelShares
from fl_audit.local_training import LocalTraining
from fl_audit.records import Records
from fl_audit.threat_model import Knowledge, Observation
from fl_audit.trace import TraceView
from fl_audit.trace.query import logits

Method = Literal["bias", "llg", "idlg"]
Values = NDArray[np.float64]
Arrays = Mapping[str, NDArray[np.generic]]
_PRESENT = 0.5  # examples: fewer than half of one is none


class LabelSettings(RoundSettings):
    """How class shares are read from the bias update."""

    method: Method = "bias"
    """"bias": least squares; "llg": impact and offset; "idlg": presence of classes only."""
    path_points: int = Field(default=3, ge=1, le=100)
    """Models on the way from received to returned at which the softmax is taken."""


class LocalLabelSettings(LabelSettings):
    """For sums, where it is not known how many examples each client has."""

    examples_per_client: int | None = Field(default=None, ge=1)
    """Needed where the threat model does not grant example counts."""


def mean_gradient(
    bias_update: Values, bias: Values, training: LocalTraining, *, server_round: int, steps: int
) -> Values:
    """Mean bias gradient of the cross-entropy over a client's local steps, shape (classes,).

    Args:
        bias_update: Returned minus received, shape (classes,).
        bias: What was received.
        training: How the client trains; momentum is undone for gradients that change slowly.
        steps: Local steps.

    Raises:
        InputError: If the round's learning rate is 0.
    """
    rate = training.learning_rate_in(server_round)
    if rate == 0:
        raise InputError(
            "learning rate", 0, f"round {server_round} moves nothing", "Leave the round out."
        )
    momentum = training.momentum
    weight = sum((1 - momentum ** (steps - t)) / (1 - momentum) for t in range(steps))
    halfway = bias + bias_update / 2
    extra = training.weight_decay * halfway + training.proximal_mu * bias_update / 2
    result: Values = -bias_update / (rate * weight) - extra
    return result


def llg_shares(gradient: Values, softmax_by_class: Values) -> Values:
    """Class shares by label leakage from gradients: (g - offset) / impact, not below 0.

    The offset of a class is its mean softmax on records of other classes; the impact is how far
    the gradient falls, on average over classes, when the whole batch is of the class.

    Args:
        gradient: Shape (classes,).
        softmax_by_class: Row k = mean softmax of records of class k, shape (classes, classes).

    Returns:
        Shape (classes,), sum 1; equal shares if nothing speaks for any class.
    """
    classes = len(gradient)
    own = np.diag(softmax_by_class)
    offset = (softmax_by_class.sum(axis=0) - own) / max(1, classes - 1)
    impact = float(np.mean(own - 1 - offset))
    found: Values = np.clip((gradient - offset) / impact, 0, None)
    total = found.sum()
    return found / total if total > 0 else np.full(classes, 1 / classes)


def path_softmax(
    module: Any,
    before: Arrays,
    update: Mapping[str, Values],
    records: Records,
    *,
    points: int = 3,
    device: str = "cpu",
) -> Values:
    """Mean softmax by class of auxiliary records, along the line from received to returned.

    Returns:
        Row k = records of class k, shape (classes, classes); the mean over all where there is none.
    """
    rows = []
    for share in (np.arange(points) + 0.5) / points:  # midpoint rule
        arrays: dict[str, NDArray[np.generic]] = dict(before)
        for name in update:
            moved = before[name].astype(np.float64) + share * update[name]
            arrays[name] = moved.astype(before[name].dtype)
        found = logits(module, arrays, records.inputs, device=device)
        check_labels(records, found.shape[1])
        rows.append(mean_by_class(softmax(found, axis=1), records.labels, found.shape[1]))
    result: Values = np.mean(rows, axis=0)
    return result


def label_distribution(
    view: TraceView,
    auxiliary: Records,
    *,
    method: Method = "bias",
    rounds: Sequence[int] | None = None,
    path_points: int = 3,
    source: Literal["clients", "sum"] = "clients",
    examples_per_client: int | None = None,
    device: str = "cpu",
) -> LabelShares:
    """Class shares of the data behind each update.

    Args:
        auxiliary: Records like the clients', at least one.
        source: Each client's update, or their sum: the mix of all whose updates are in it.
        examples_per_client: For sums whose example counts are not known.

    Raises:
        ObservationError: If the view does not grant the updates.
        InputError: If the model's last parameter is no bias, or no update can be used.
    """
    if len(auxiliary) == 0:
        raise _no_auxiliary()
    module = view.architecture()
    found: list[LabelShare] = []
    notes = [*notes_on(view, (SUM,) if source == "sum" else ())]
    for number in chosen_rounds(view, rounds):
        for clients, before, update in _updates(view, number, source):
            name = last_bias(update)
            bias_update = np.asarray(update[name], dtype=np.float64)
            if not bias_update.any() or not np.isfinite(bias_update).all():
                notes.append(f"Round {number}, clients {list(clients)}: a zero or broken update.")
                continue
            try:
                training, steps, examples = _work(view, number, clients, examples_per_client)
                gradient = mean_gradient(
                    bias_update,
                    before[name].astype(np.float64),
                    training,
                    server_round=number,
                    steps=steps,
                )
            except InputError as error:
                if error.name == "examples_per_client":
                    raise
                notes.append(f"Round {number}, clients {list(clients)}: {error.rule}.")
                continue
            if method == "idlg":
                found.append(LabelShare(number, clients, gradient < 0, None))
                continue
            mean = path_softmax(
                module, before, update, auxiliary, points=path_points, device=device
            )
            shares = (
                class_shares(gradient, mean) if method == "bias" else llg_shares(gradient, mean)
            )
            shares = shares / shares.sum()
            found.append(LabelShare(number, clients, shares * examples >= _PRESENT, shares))
    if not found:
        raise no_signal()
    return LabelShares(tuple(found), tuple(notes))


def _updates(
    view: TraceView, number: int, source: str
) -> Iterator[tuple[tuple[int, ...], Arrays, Mapping[str, Values]]]:
    """(clients, model received, update)."""
    if source == "clients":
        for client in view.clients(number):
            yield (client,), view.received(number, client), view.client_update(number, client)
        return
    update = view.sum_update(number)
    if update is not None:
        yield view.summed(number), view.global_model(number), update


def _work(
    view: TraceView, number: int, clients: tuple[int, ...], assumed: int | None
) -> tuple[LocalTraining, int, float]:
    """How the clients train, their local steps (weighted by examples in a sum), and examples."""
    training = view.local_training(clients[0])
    if Knowledge.EXAMPLE_COUNTS in view.threat_model.knows:
        counts = [view.num_examples(number, client) for client in clients]
    elif assumed is not None:
        counts = [float(assumed)] * len(clients)
    else:
        raise InputError(
            "examples_per_client",
            None,
            "how many examples a client has is not known to this adversary, so neither are its "
            "steps",
            "Grant example-counts, or set examples_per_client to what the adversary would assume.",
        )
    steps = [view.local_training(c).steps(round(n)) for c, n in zip(clients, counts, strict=True)]
    mean = round(float(np.average(steps, weights=counts)))
    return training, mean, float(sum(counts))


def _no_auxiliary() -> InputError:
    return InputError(
        "auxiliary",
        None,
        "records like the clients' are needed to estimate the model's softmax",
        "Set game.auxiliary to at least 1, and let the threat model know auxiliary-data.",
    )


def _run(given: AttackInput, source: Literal["clients", "sum"]) -> LabelShares:
    if given.auxiliary is None:
        raise _no_auxiliary()
    settings = given.settings
    return label_distribution(
        given.view,
        given.auxiliary,
        method=settings.method,
        rounds=settings.rounds,
        path_points=settings.path_points,
        source=source,
        examples_per_client=getattr(settings, "examples_per_client", None),
        device=given.device,
    )


_REFERENCE = "https://doi.org/10.2478/popets-2022-0043"
_KNOWS = Knowledge.LOCAL_TRAINING | Knowledge.AUXILIARY_DATA

ATTACK = AttackSpec(
    name="label_distribution",
    kind="estimate",
    requires=Observation.CLIENT_UPDATES | Observation.GLOBAL_MODEL,
    knows=_KNOWS | Knowledge.EXAMPLE_COUNTS,
    run=lambda given: _run(given, "clients"),
    reference=_REFERENCE,
    summary="The last layer's bias update gives away which classes a client holds, and how many",
    settings=LabelSettings,
)

LOCAL_ATTACK = AttackSpec(
    name="local_label_distribution",
    kind="estimate",
    requires=Observation.AGGREGATE | Observation.GLOBAL_MODEL,
    knows=_KNOWS,
    run=lambda given: _run(given, "sum"),
    reference=_REFERENCE,
    summary="The sum of updates gives away the federation's mix of classes",
    settings=LocalLabelSettings,
)

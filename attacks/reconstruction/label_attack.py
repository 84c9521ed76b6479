"""Label counts of recorded updates: each client's, or those behind a sum of updates.

One step of FedSGD gives the counts of its batch; several local steps give those of the records
that the client went through, up to what varies along the steps.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from attacks.federated.rounds import SUM, Source
from attacks.reconstruction.label_layer import last_layer
from attacks.reconstruction.label_softmax import has_batch_norm
from attacks.reconstruction.label_steps import Correction, LocalWork
from attacks.reconstruction.labels import LabelEstimate, estimate_labels, idlg_counts
from attacks.reconstruction.observed import (
    Observed,
    UpdateSettings,
    both_seats,
    observed,
    seat_notes,
    seated,
)
from attacks.reconstruction.optimisation.simulation import pseudo_gradient
from fl_audit.attack_spec import AttackInput, Reconstruction, Reconstructions
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining
from fl_audit.threat_model import Knowledge
from fl_audit.trace.query import load_weights

_MOST_STEPS = 1_000_000  # a client may claim any number of examples


class LabelCountSettings(UpdateSettings):
    """How labels are counted."""

    method: Literal["softmax", "idlg"] = "softmax"
    """"softmax": solve for the counts with an estimated softmax; "idlg": signs of the last
    weight's gradient, for comparison."""
    proxies: Literal["auxiliary", "noise"] = "auxiliary"
    """What the softmax is estimated from: the adversary's own records, or noise."""
    num_proxies: int = Field(default=500, ge=1)
    """At most so many auxiliary records."""
    input_shape: list[int] | None = None
    """Of one input, for noise; by default that of the auxiliary records."""
    correction: Correction = "path"
    """Several local steps: average the softmax along the way to the returned model ("path"), over
    a training on the proxies ("simulated": dearer, and steadier where steps overshoot), or not
    ("none")."""
    path_points: int = Field(default=5, ge=1, le=100)
    """Models on that way."""
    examples_per_client: int | None = Field(default=None, ge=1)
    """What to assume where the threat model does not grant example counts."""
    mode: Literal["train", "eval"] = "train"
    """Mode of the client's model, which matters to layers of batch statistics only."""


def run_label_counts(given: AttackInput, source: Source) -> Reconstructions:
    """Count the labels behind each update that the settings choose.

    Raises:
        InputError: If no update can be read: the reason is that of the first.
    """
    settings: LabelCountSettings = given.settings
    notes = [*seat_notes(given.view, source, settings)]
    claims: list[Reconstruction] = []
    refused: list[InputError] = []
    counter = _Counter(given, source)
    for seen in observed(given, source):
        try:
            found = counter(seen)
        except InputError as error:
            who = "the sum" if seen.client == SUM else f"client {seen.client}"
            notes.append(f"Round {seen.round}, {who}: no claim, {error.rule}.")
            refused.append(error)
            continue
        notes += found.notes
        behind = seen.behind if seen.client == SUM else ()
        claims.append(
            Reconstruction(seen.round, seen.client, label_counts=found.counts, behind=behind)
        )
    if refused and not claims:
        raise refused[0]
    return Reconstructions(tuple(claims), tuple(dict.fromkeys(notes)))


class _Counter:
    """Counts labels of one update after another, with one module and one set of proxies."""

    def __init__(self, given: AttackInput, source: Source) -> None:
        self._settings: LabelCountSettings = given.settings
        self._view = seated(given.view, source, self._settings)
        self._module: torch.nn.Module = given.view.architecture().to(given.device)
        self._module.train(self._settings.mode == "train")
        self._generator = torch.Generator().manual_seed(int(given.rng.integers(2**62)))
        self._inputs: NDArray[np.float32] | None = None
        self._labels: NDArray[np.int64] | None = None
        self._shape = self._settings.input_shape
        last_layer(self._module)  # raises for all updates at once
        if given.auxiliary is not None and len(given.auxiliary):
            self._shape = self._shape or list(given.auxiliary.input_shape)
            if self._settings.proxies == "auxiliary":
                rows = given.rng.permutation(len(given.auxiliary))[: self._settings.num_proxies]
                own = given.auxiliary.take(rows)
                self._inputs, self._labels = own.inputs[:], own.labels
        if self._settings.method == "softmax":
            self._refuse_nothing_to_ask()

    def __call__(self, seen: Observed) -> LabelEstimate:
        """The estimate for one update.

        Raises:
            InputError: If it cannot be read.
        """
        local = self._local(seen)
        rate = local.learning_rate_in(seen.round)
        if rate == 0:
            raise InputError(
                "learning_rate", 0, "the learning rate is 0, so nothing is sent", "Leave it out."
            )
        total, each, notes = self._examples(seen, local)
        work = LocalWork(
            local, rate, each, correction=self._settings.correction, at_most=self._points
        )
        if work.steps > _MOST_STEPS:
            raise InputError(
                "steps", work.steps, f"{each} examples make more steps than can be", "Leave it out."
            )
        load_weights(self._module, seen.model)
        names = [name for name, _ in self._module.named_parameters() if name in seen.update]
        gradients = pseudo_gradient(
            {name: seen.update[name] for name in names}, rate, work.steps, local.momentum
        )
        if self._settings.method == "idlg":
            counts = idlg_counts(self._module, gradients, total)
            signs = "Classes are told by signs, which hold if no feature is negative (iDLG)."
            return LabelEstimate(counts, counts / total, total, (signs, *notes))
        found = estimate_labels(
            self._module,
            gradients,
            total,
            proxy_inputs=self._inputs,
            proxy_labels=self._labels,
            generator=self._generator,
            input_shape=self._shape,
            work=work,
        )
        return LabelEstimate(
            found.counts, found.shares, total, (*found.notes, *notes, *self._caveats(work))
        )

    @property
    def _points(self) -> int:
        return self._settings.path_points

    def _refuse_nothing_to_ask(self) -> None:
        if self._inputs is None and self._settings.proxies == "auxiliary":
            raise InputError(
                "auxiliary",
                None,
                "records like the clients' are needed to estimate the model's softmax",
                "Set game.auxiliary to at least 1 and let the threat model know auxiliary-data, or "
                'set proxies = "noise" and input_shape.',
            )

    def _local(self, seen: Observed) -> LocalTraining:
        if seen.local is None:
            for client in seen.behind:
                self._view.local_training(client)  # raises where nothing was recorded
            raise InputError(
                "local_training",
                list(seen.behind),
                "the clients train in different ways",
                "Attack single clients' updates.",
            )
        return seen.local

    def _examples(self, seen: Observed, local: LocalTraining) -> tuple[int, int, list[str]]:
        """Records behind the update, records of a mean client, and what was assumed."""
        many = len(seen.behind)
        if seen.num_examples is not None:
            counts = [self._view.num_examples(seen.round, client) for client in seen.behind]
            each = [_used(local, count) for count in counts]
            return sum(each), round(sum(each) / many), []
        assumed = self._settings.examples_per_client
        if assumed is None and local.algorithm == "fedsgd":
            assumed = local.batch_size
        if assumed is None:
            raise InputError(
                "examples_per_client",
                None,
                "how many examples a client has is not known, so neither are its steps",
                "Grant example-counts, or set examples_per_client to what the adversary would "
                "assume.",
            )
        each_one = _used(local, assumed)
        return each_one * many, each_one, [f"{each_one} examples a client are assumed."]

    def _caveats(self, work: LocalWork) -> list[str]:
        notes = []
        if work.steps > 1:
            way = {
                "path": "averaged along the straight way from the received to the returned model",
                "simulated": "averaged over a training simulated on the proxies",
                "none": "that of the received model alone",
            }
            notes.append(f"{work.steps} local steps: the softmax is {way[work.correction]}.")
        if has_batch_norm(self._module):
            taken = (
                "those of proxies in batches of the clients' size; the clients' own differ"
                if self._module.training
                else "the recorded ones; clients that train use those of their batch"
            )
            notes.append(f"The model has batch normalisation: its statistics are {taken}.")
        return notes


def _used(local: LocalTraining, count: float) -> int:
    """Records that go into an update of a client that says it has so many."""
    whole = max(1, round(count))
    return min(local.batch_size, whole) if local.algorithm == "fedsgd" else whole


ATTACK, LOCAL_ATTACK = both_seats(
    "label_counts",
    run_label_counts,
    reference="https://doi.org/10.2478/popets-2022-0043",
    summary="The last layer's gradient gives away how many examples of each class were used",
    settings=LabelCountSettings,
    knows=Knowledge.LOCAL_TRAINING,
)

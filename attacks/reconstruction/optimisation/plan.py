"""A client's local steps, laid out so that they can be unrolled.

In which order a client goes through its data is not known, so where it makes several epochs, each
epoch gets inputs of its own. A prior that does not depend on the order holds the epochs together;
at the end their inputs are paired up and averaged.

References:
    Dimitrov, Balunovic, Konstantinov, Vechev, "Data leakage in federated averaging", TMLR 2022.
    https://arxiv.org/abs/2206.12395
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

from attacks.reconstruction.label_steps import LocalWork
from fl_audit.errors import InputError
from fl_audit.local_training import LocalTraining

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """How a client's update of one round came about, as far as it is known.

    Attributes:
        training: Epochs, batch size, momentum, decay, proximal term.
        rate: Learning rate of the round.
        num_examples: Records that it went through.
        epoch_prior: Weight of the squared distance between epochs' mean inputs.
        orders: Sequences of labels to try, if there are several steps; 1: the given one alone.
        trial: Evaluations of the objective's gradient for each.
    """

    training: LocalTraining
    rate: float
    num_examples: int
    epoch_prior: float = 0.1
    orders: int = 24
    trial: int = 60

    def __post_init__(self) -> None:
        if self.num_examples < 1 or not self.rate > 0:
            raise InputError(
                "plan",
                (self.num_examples, self.rate),
                "needs at least one example and a learning rate above 0",
                "Give what the client trained with.",
            )

    @property
    def epochs(self) -> int:
        """Passes over the data; 1 for a single step."""
        return 1 if self.training.algorithm == "fedsgd" else self.training.local_epochs

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return self.training.steps(self.num_examples)

    def work(self) -> LocalWork:
        """The same for label counts."""
        return LocalWork(self.training, self.rate, self.num_examples)

    def batches(self) -> list[Tensor]:
        """Rows of the searched inputs (epochs one after another) in each step."""
        size = self.num_examples
        if self.training.algorithm != "fedsgd":
            size = min(self.training.batch_size, self.num_examples)
        rows = torch.arange(self.epochs * self.num_examples).reshape(self.epochs, -1)
        return [batch for epoch in rows for batch in torch.split(epoch, size)]

    def spread(self, labels: Tensor) -> Tensor:
        """Labels of the searched inputs from those of the records, the same for every epoch."""
        return labels.repeat(self.epochs)

    def prior(self, searched: Tensor) -> Tensor:
        """Mean squared distance of each epoch's mean input to that of all; order plays no part."""
        means = self._by_epoch(searched).mean(1)
        away: Tensor = (means - means.mean(0, keepdim=True)).square().mean()
        return self.epoch_prior * away

    def merge(self, searched: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One input for each record: epochs are paired up with the first by label, and averaged.

        Args:
            searched: Shape (epochs * num_examples, ...).
            labels: Shape (epochs * num_examples,).
        """
        if self.epochs == 1:
            return searched, labels
        epochs, kinds = self._by_epoch(searched), self._by_epoch(labels)
        total = epochs[0].clone()
        for other, their in zip(epochs[1:], kinds[1:], strict=True):
            cost = torch.cdist(epochs[0].flatten(1), other.flatten(1)).square()
            apart = (kinds[0][:, None] != their[None]) * (cost.max() + 1)
            _, columns = linear_sum_assignment((cost + apart).cpu().numpy())
            total = total + other[torch.as_tensor(columns, device=other.device)]
        return total / self.epochs, kinds[0]

    def _by_epoch(self, values: Tensor) -> Tensor:
        return values.reshape(self.epochs, self.num_examples, *values.shape[1:])

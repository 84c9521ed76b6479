"""Training of attack networks on records of known membership, few as they may be.

Several networks each leave out a fold of the known records, and learn side by side. They start by
correcting nothing of their base. After which epoch they stop, and how large a share of the
correction counts, is chosen by the loss on the records left out; and where the best choice is not
clearly better than the base, the base is kept. With few known records the loss says nearly
everything, and a network that has its way loses it in noise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from torch import nn

from attacks.membership.white_box_features import Features
from attacks.membership.white_box_network import AttackNetwork, Base, Scale

_WEIGHT_DECAY = 1e-3
_MOMENTUM = 0.9  # sgd
_PATIENCE = 20  # epochs without a better loss
_SHARES = (1.0, 0.5, 0.25, 0.1)  # of the correction: networks trust few records too much
_CLEARLY = 3.0  # standard errors: the best of some hundred choices is 2 above by chance
_ROWS = 1024  # records corrected at once

Optimizer = Literal["adam", "sgd"]


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """How attack networks are trained.

    Attributes:
        validation: Share of the known records that each network leaves out; 1 / validation
            networks leave out every record once.
    """

    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    epochs: int = 100
    batch_size: int = 64
    validation: float = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class AttackModel:
    """Trained networks, whose log-odds are averaged, but for records that they know.

    Attributes:
        fold: Of each known record: the number of the network that left it out, (m,).
        epoch: After which they stopped; 0: they correct nothing, and the base alone scores.
        share: Of their correction that counts.
    """

    learners: list[Learner]
    fold: NDArray[np.int64]
    epoch: int
    share: float

    def scores(
        self, features: Features, same_as: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Log-odds of membership in nats, up to a constant, (n,); higher = more like a member.

        Args:
            same_as: Which known record each one is, -1 for none, (n,). Only the network that left
                it out corrects its score: the others learnt an answer to it by heart, which may be
                that of another model.
        """
        found: NDArray[np.float64] = np.mean(
            [each.base(features) for each in self.learners], axis=0
        )
        corrections = np.stack([each.correction(features) for each in self.learners])
        chosen = corrections.mean(axis=0)
        if same_as is not None:
            own = corrections[self.fold[same_as], np.arange(len(features))]
            chosen = np.where(same_as >= 0, own, chosen)
        found += self.share * chosen
        return found


def train_networks(
    known: Features,
    is_member: NDArray[np.bool_],
    config: NetworkConfig,
    *,
    rng: np.random.Generator,
) -> AttackModel:
    """One network for each fold of the known records; they learn side by side.

    Args:
        is_member: Of the known records, (n,).
    """
    num = round(1 / config.validation)
    folds = StratifiedKFold(num, shuffle=True, random_state=int(rng.integers(2**32)))
    split = list(folds.split(known.scalars, is_member))
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(int(rng.integers(2**63)))
        learners = [Learner(known, is_member, own, config=config, rng=rng) for own, _ in split]
        return _stopped(learners, known, is_member, [left for _, left in split], config=config)


def _stopped(
    learners: list[Learner],
    known: Features,
    is_member: NDArray[np.bool_],
    left_out: list[NDArray[np.int64]],
    *,
    config: NetworkConfig,
) -> AttackModel:
    """Let them learn until the records left out say no more."""
    has_base = known.scalars.shape[1] > 0
    left = [known.take(rows) for rows in left_out]
    bases = [learner.base(part) for learner, part in zip(learners, left, strict=True)]
    base = _losses(bases, left_out, is_member)
    best, epoch, share = (base if has_base else np.full(len(base), np.inf)), 0, 0.0
    for number in range(1, config.epochs + 1):
        for learner in learners:
            learner.learn(config.batch_size)
        corrections = [
            learner.correction(part) for learner, part in zip(learners, left, strict=True)
        ]
        for candidate in _SHARES:
            answers = [b + candidate * c for b, c in zip(bases, corrections, strict=True)]
            losses = _losses(answers, left_out, is_member)
            if losses.mean() < best.mean():
                best, epoch, share = losses, number, candidate
        if epoch == number:
            for learner in learners:
                learner.keep()
        elif number - epoch >= _PATIENCE:
            break
    for learner in learners:
        learner.restore()
    fold = np.empty(len(is_member), dtype=np.int64)
    for which, rows in enumerate(left_out):
        fold[rows] = which
    if has_base and not _is_clear(base - best):
        return AttackModel(learners, fold, 0, 0.0)
    return AttackModel(learners, fold, epoch, share)


class Learner:
    """A network that learns from some of the known records.

    Args:
        known: Features of all of them.
        own: Rows to learn from.
    """

    def __init__(
        self,
        known: Features,
        is_member: NDArray[np.bool_],
        own: NDArray[np.int64],
        *,
        config: NetworkConfig,
        rng: np.random.Generator,
    ) -> None:
        self._known, self._is_member, self.own, self._rng = known, is_member, own, rng
        features = known.take(own)
        self._scale = Scale.of(features)
        self._base = Base.of(self._scale.scalars(features), is_member[own])
        shapes = [tuple(x.shape[1:]) for x in self._scale.tensors(features.take(np.arange(1)))]
        self._network = AttackNetwork(shapes)
        self._optimizer = _optimizer(self._network, config)
        self.keep()

    def learn(self, batch_size: int) -> None:
        """One epoch."""
        self._network.train()
        order = self._rng.permutation(self.own)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self._known.take(rows)
            wanted = torch.from_numpy(self._is_member[rows].astype(np.float32))
            base = torch.from_numpy(self.base(batch).astype(np.float32))
            self._optimizer.zero_grad(set_to_none=True)
            answers = base + self._network(self._scale.tensors(batch))
            # the likelihood of log-odds, where the paper has a squared error: its gradient does not
            # vanish where the network is surely wrong, and log-odds do not round to ties at 1
            loss = nn.functional.binary_cross_entropy_with_logits(answers, wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def keep(self) -> None:
        """Remember the network as it is."""
        self._kept = copy.deepcopy(self._network.state_dict())

    def restore(self) -> None:
        """Go back to the network that was kept."""
        self._network.load_state_dict(self._kept)

    def base(self, features: Features) -> NDArray[np.float64]:
        """Log-odds of any records without the network, in nats, (n,)."""
        return self._base(self._scale.scalars(features))

    def correction(self, features: Features) -> NDArray[np.float64]:
        """What the network adds to them, in nats, (n,)."""
        self._network.eval()
        found = np.empty(len(features))
        for start in range(0, len(features), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(features)))
            with torch.no_grad():
                part = self._network(self._scale.tensors(features.take(rows)))
            found[rows] = part.double().numpy()
        return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Two threads change the bits of a small model, and gain nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _losses(
    answers: Sequence[NDArray[np.float64]],
    left_out: Sequence[NDArray[np.int64]],
    is_member: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Minus log-likelihood in nats of every record by the network that left it out, (n,)."""
    found = np.empty(len(is_member))
    for rows, answer in zip(left_out, answers, strict=True):
        found[rows] = np.logaddexp(0, np.where(is_member[rows], -answer, answer))
    return found


def _is_clear(gains: NDArray[np.float64]) -> bool:
    """Whether their mean is above 0 by some standard errors."""
    return bool(gains.mean() > _CLEARLY * gains.std() / np.sqrt(len(gains)))


def _optimizer(network: nn.Module, config: NetworkConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), config.lr, weight_decay=_WEIGHT_DECAY)
    return torch.optim.SGD(
        network.parameters(), config.lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY
    )

"""From the gradient that a fishing model's last layer let through to the record behind it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from attacks.reconstruction.fishing_layer import (
    Caught,
    Matrix,
    caught_gradient,
    last_names,
    passing_share,
    read_layer_cut,
)
from attacks.reconstruction.observed import Observed, UpdateSettings
from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.engine import invert_gradients
from attacks.reconstruction.optimisation.presets import preset
from attacks.reconstruction.optimisation.result import Inversion
from attacks.reconstruction.optimisation.simulation import OneGradient
from attacks.reconstruction.optimisation.smoothness import kinks
from attacks.reconstruction.planted import batch_size, local_steps
from fl_audit.attack_spec import AttackInput, Reconstruction
from fl_audit.errors import InputError
from fl_audit.records import Records

Fate = Literal["empty", "mixed", "one", "steps", "unsolved", "waiting"]
_MOST_OWN = 30  # own records whose gradients are compared: nets differ in how alike they are
_WHOLE = 0.1  # records: a count further from a whole number has records that pass in part


class FishingSettings(UpdateSettings):
    """Which updates, and how to search the record that is behind one.

    Models of two dense layers need no search: only `rounds`, `clients` and `most_updates` matter.
    """

    preset: Literal["auto", "second_order", "inverting_gradients"] = "auto"
    """Recipe of the search. "auto": `second_order` where the model is smooth, otherwise
    `inverting_gradients`."""
    iterations: int | None = Field(default=None, ge=1)
    """Evaluations of the objective; the preset's by default."""
    restarts: int = Field(default=1, ge=1)
    """Searches from different starts; the best by the attacker's own objective counts."""
    total_variation: float = Field(default=0.0, ge=0)
    """Weight of the mean absolute difference of neighbouring pixels: for photographs."""
    most_unexplained: float = Field(default=0.2, gt=0, le=1)
    """A record is claimed if 1 - cosine of its gradient and the observed one is at most this share
    of what the nearest of the adversary's own records of the class leaves."""
    most_searches: int = Field(default=8, ge=1)
    """Records to search, in the order of rounds and clients; each takes seconds to minutes."""


@dataclass(frozen=True, slots=True, eq=False)
class Catch:
    """What became of one update of a client that received a fishing model.

    Attributes:
        fate: "empty": no record passed; "mixed": several did, or one of another class; "steps":
            the client took several steps; "waiting": not searched; "unsolved": searched in vain;
            "one": a record was found.
        chance: Probability that one record passes, by the adversary's own; None if not known.
        is_counted: Whether the number of records is known from the size of the update.
        claim: The record; None unless the fate is "one".
    """

    fate: Fate
    chance: float | None
    is_counted: bool
    claim: Reconstruction | None = None


def land(
    given: AttackInput, seen: Observed, module: torch.nn.Module, *, may_search: bool
) -> Catch | None:
    """Find the record that passed, if it is one.

    Args:
        given: With settings of `FishingSettings`.
        seen: The update of a client that received another model than the global one.
        module: The architecture; its weights are overwritten.
        may_search: Whether there is time for another search.

    Returns:
        None if the model is no fishing model.

    Raises:
        InputError: If the model does not end in a dense layer with a bias, or the adversary has no
            records of its own.
    """
    label = read_layer_cut(seen.model, last_names(module))
    if label is None:
        return None
    proxies = given.auxiliary
    if proxies is None or not len(proxies):
        raise InputError(
            "auxiliary records",
            0,
            "the shape and the size of inputs are not known without any",
            "Grant auxiliary-data, and give the adversary some: [game] auxiliary = 1000.",
        )
    batch = batch_size(seen)
    share = None if batch is None else passing_share(module, seen.model, label, proxies)
    chance = None if share is None or batch is None else share.alone(batch)
    if local_steps(seen) not in (None, 1):
        return Catch("steps", chance, is_counted=False)
    caught = caught_gradient(module, seen.model, _gradients(seen, module), label)
    passed = num_caught(seen, caught)
    catch = Catch("mixed", chance, is_counted=passed is not None)
    if caught.is_empty:
        return replace(catch, fate="empty")
    if passed is not None and abs(passed - 1) > _WHOLE:
        return catch
    if not may_search:
        return replace(catch, fate="waiting")
    claim = _search(given, seen, caught, label, proxies=proxies)
    return replace(catch, fate="unsolved" if claim is None else "one", claim=claim)


def num_caught(seen: Observed, caught: Caught) -> float | None:
    """Records of the class that passed, less those of others that did.

    Returns:
        None if the learning rate or the batch is not known.
    """
    batch = batch_size(seen)
    return None if batch is None or seen.local is None else caught.passed * batch


def _gradients(seen: Observed, module: torch.nn.Module) -> dict[str, Matrix]:
    """The update read as the gradient of one step; up to a factor where the rate is not known."""
    rate, decay = 1.0, 0.0
    if seen.local is not None:
        rate, decay = seen.local.learning_rate_in(seen.round), seen.local.weight_decay
    if rate == 0:
        raise InputError(
            "learning_rate", 0.0, "nothing is sent in this round", "Choose an earlier round."
        )
    return {
        name: -seen.update[name] / rate - decay * np.asarray(seen.model[name]).astype(np.float64)
        for name, _ in module.named_parameters()
    }


def _search(
    given: AttackInput, seen: Observed, caught: Caught, label: int, *, proxies: Records
) -> Reconstruction | None:
    found = search_record(
        replace(caught, model=caught.model.to(given.device)),
        label,
        given.settings,
        proxies=proxies,
        generator=torch.Generator().manual_seed(int(given.rng.integers(2**62))),
        tick=None
        if given.tick is None
        else partial(given.tick, f"round {seen.round}, client {seen.client}"),
    )
    if found is None:
        return None
    return Reconstruction(
        seen.round,
        seen.client,
        found.inputs,
        labels=found.labels,
        objective=found.history[:, found.best],
    )


def search_record(
    caught: Caught,
    label: int,
    settings: FishingSettings,
    *,
    proxies: Records,
    generator: torch.Generator,
    tick: Callable[[int, int], None] | None = None,
) -> Inversion | None:
    """The record whose gradient is the caught one; None if it leaves too much unexplained.

    Args:
        label: The fished class.
        proxies: The adversary's own records: at least one.
        tick: Called with (evaluations done, at most).
    """
    labels = np.array([label], dtype=np.int64)
    found = invert_gradients(
        caught.model,
        caught.gradients,
        input_shape=proxies.input_shape,
        labels=labels,
        config=_config(settings, caught.model, proxies),
        generator=generator,
        batch_size=1,
        proxies=proxies.inputs,
        tick=tick,
    )
    # a fixed bound would mean nothing: in some nets, gradients of all records are alike
    nearest = min(unexplained(caught, own, labels) for own in _own(proxies, label))
    if unexplained(caught, found.inputs, labels) > settings.most_unexplained * nearest:
        return None
    return found


def _own(proxies: Records, label: int) -> list[Matrix]:
    """Records of the class, each a batch of one; of any class where there is none."""
    rows = np.flatnonzero(proxies.labels == label)
    chosen = (rows if len(rows) else np.arange(len(proxies)))[:_MOST_OWN]
    inputs = np.asarray(proxies.take(chosen).inputs[:]).astype(np.float64)
    return [inputs[place : place + 1] for place in range(len(inputs))]


def _config(settings: FishingSettings, model: torch.nn.Module, proxies: Records) -> InversionConfig:
    name = settings.preset
    if name == "auto":
        like = next(model.parameters())
        one = torch.from_numpy(np.asarray(proxies.inputs[:1])).to(like)
        name = "inverting_gradients" if kinks(model, one) else "second_order"
    changes = {"restarts": settings.restarts, "total_variation": settings.total_variation}
    if settings.iterations is not None:
        changes["iterations"] = settings.iterations
    return preset(name, **changes)


def unexplained(caught: Caught, inputs: Matrix, labels: NDArray[np.int64]) -> float:
    """1 - cosine of the gradient of these inputs and the caught one, in [0, 2]."""
    model = copy.deepcopy(caught.model).double().eval()
    names = tuple(name for name, _ in model.named_parameters())
    device = next(model.parameters()).device
    own = OneGradient(model, names)(
        torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device)
    )
    flat = np.concatenate([g.detach().cpu().numpy().ravel() for g in own])
    seen = np.concatenate([caught.gradients[name].ravel() for name in names])
    norms = float(np.linalg.norm(flat) * np.linalg.norm(seen))
    return 1.0 if norms == 0 else 1 - float(flat @ seen) / norms

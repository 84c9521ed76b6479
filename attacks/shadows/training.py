"""The default way to train a model from its records: one at a time, or many as one batch.

Both draw the same batches from the same seed. In what groups models train together does not change
a bit of them; those trained one at a time agree up to rounding.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from attacks.devices import one_thread
from fl_audit.errors import InputError
from fl_audit.randomness import derived_rng, derived_seed
from fl_audit.records import Records
from fl_audit.results import Record

Build = Callable[[int], nn.Module]
"""A freshly initialised module from a seed."""
Weights = dict[str, torch.Tensor]
# what vmap cannot take along, or what would draw other numbers in another group
_STATEFUL = (nn.modules.batchnorm._BatchNorm, nn.RNNBase, nn.modules.dropout._DropoutNd)
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_TRIAL_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_LANES = 64  # numbers; the widest vector registers hold 16, and loops are unrolled
_TOGETHER_BYTES = 1 << 29  # weights, gradients and optimizer state of one group: 512 MB


class TrainingConfig(Record):
    """How the default trainer trains shadow, reference and distilled models."""

    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="sgd")
    weight_decay: float = Field(default=0.0, ge=0)
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=32, ge=1)
    loss: Literal["cross_entropy", "mse"] | None = Field(
        default=None, description="by default cross_entropy for classes, mse for targets"
    )

    def make_optimizer(self, parameters: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
        """Elementwise, so that it works on stacked parameters, too."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=self.learning_rate,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                fused=True,
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One model to train.

    Attributes:
        records: What on.
        seed: Of its initial weights and batches.
        soft: Class probabilities to imitate instead of the labels, shape (n, classes).
    """

    records: Records
    seed: int
    soft: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = field(default=())


def fresh_builder(module: nn.Module) -> Build:
    """Build modules like this one, with weights drawn anew.

    Raises:
        InputError: If a part of it has weights and no `reset_parameters`, so that it cannot be
            initialised again.
    """
    for name, part in module.named_modules():
        own = list(part.parameters(recurse=False))
        if own and not hasattr(part, "reset_parameters"):
            raise InputError(
                f"layer {name or 'of the model'!r}",
                type(part).__name__,
                "has weights and no reset_parameters(), so no fresh model can be made of it",
                'Name the factory that builds the model: model_factory="my_module:build".',
            )
    template = copy.deepcopy(module).cpu().requires_grad_(True)

    def build(seed: int) -> nn.Module:
        fresh = copy.deepcopy(template)
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(seed % 2**63)
            for part in fresh.modules():
                reset: Any = getattr(part, "reset_parameters", None)
                if reset is not None:
                    reset()
        return fresh.train()

    return build


def factory_builder(factory: Callable[[], Any]) -> Build:
    """Build modules by calling a factory, with torch's generator seeded for the call."""

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(seed % 2**63)
            module = factory()
        if not isinstance(module, nn.Module):
            raise InputError(
                "model factory",
                type(module).__name__,
                "must return a torch module",
                "Return an instance of torch.nn.Module.",
            )
        return module.train()

    return build


def settled(config: TrainingConfig, *, has_targets: bool) -> TrainingConfig:
    """The configuration with its loss: the one it names, or the one that fits the records.

    Raises:
        InputError: If it names one that does not fit them.
    """
    wanted: Literal["cross_entropy", "mse"] = "mse" if has_targets else "cross_entropy"
    if config.loss is None:
        return config.model_copy(update={"loss": wanted})
    if config.loss != wanted:
        rule = "is for regression targets" if config.loss == "mse" else "is for classes"
        raise InputError(
            "training.loss", config.loss, rule, f"Use loss = '{wanted}', or leave it out."
        )
    return config


def trains_together(module: nn.Module, example: NDArray[np.float32]) -> bool:
    """Whether models of this kind are faster as one batch, and can be one.

    Measured with 32 models: an MLP about four times as fast as one after the other, a small CNN 1.1
    times. So convolutions, what keeps state between batches, and dropout, whose
    draws would depend on the group, train one by one; so do models with weights that are frozen,
    unused or not all of one type. What the layers' kinds do not tell, such as
    `torch.nn.functional.dropout`, a trial does.

    Args:
        example: Inputs to try the module with, shape (b, ...).
    """
    if any(isinstance(part, _STATEFUL + _CONVOLUTIONS) for part in module.modules()):
        return False
    weights = list(module.parameters())
    if not all(p.requires_grad for p in weights) or len({p.dtype for p in weights}) != 1:
        return False
    return _is_a_function(module, torch.from_numpy(example))


def _is_a_function(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether answers in training mode follow from weights and inputs alone, under vmap, too."""
    model = copy.deepcopy(module).train()
    buffers = [b.clone() for b in model.buffers()]
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        before = torch.random.get_rng_state()
        try:
            first, second = model(inputs), model(inputs)
            used = torch.autograd.grad(first.sum(), list(model.parameters()), allow_unused=True)
            stacked, held = stack_module_state([model])
            vmap(lambda p, b, x: functional_call(model, {**p, **b}, (x,)))(
                stacked, held, inputs[None]
            )
        except _TRIAL_ERRORS:  # if it is the module that cannot do it, training it says so
            return False
        # outputs alone would not do: a rare draw may change nothing here
        drew = not torch.equal(before, torch.random.get_rng_state())
    kept = all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    all_used = all(gradient is not None for gradient in used)
    return not drew and kept and all_used and torch.equal(first, second)


def image_format(module: nn.Module, example: NDArray[np.float32]) -> torch.memory_format:
    """The order of numbers in memory in which a model trains faster, of those that it can take.

    On CPUs convolutions, pooling and their gradients are about 1.6 times as fast with channels
    last. A trial tells modules that cannot take it, such as those that call `view` on a picture.

    Args:
        example: Inputs to try the module with, shape (b, ...).
    """
    weights = list(module.parameters())
    pictures = example.ndim == 4 and any(isinstance(m, nn.Conv2d) for m in module.modules())
    if not pictures or any(p.device.type != "cpu" for p in weights):
        return torch.contiguous_format
    answers = []
    with one_thread(), torch.random.fork_rng(devices=[]):
        for order in (torch.contiguous_format, torch.channels_last):
            model = _in_format(copy.deepcopy(module), order).train()
            torch.random.manual_seed(0)
            try:
                found = model(torch.from_numpy(example).contiguous(memory_format=order))
                found.square().sum().backward()
            except _TRIAL_ERRORS:  # if it is the module that cannot do it, training it says so
                return torch.contiguous_format
            answers.append(found.detach())
    same = torch.allclose(answers[0], answers[1], rtol=1e-3, atol=1e-4)
    return torch.channels_last if same else torch.contiguous_format


def epoch_batches(num: int, config: TrainingConfig, seed: int) -> Iterator[list[NDArray[np.int64]]]:
    """Rows of each batch, epoch by epoch.

    A last batch of a single record joins the one before it, for every kind of model: BatchNorm
    cannot normalise over one record in training mode.
    """
    rng = derived_rng(seed, "batches")
    starts = list(range(0, num, config.batch_size))
    if config.batch_size > 1 and len(starts) > 1 and num - starts[-1] == 1:
        starts.pop()
    ends = [*starts[1:], num]
    for _ in range(config.epochs):
        order = rng.permutation(num)
        yield [order[i:j] for i, j in zip(starts, ends, strict=True)]


def train_one(
    build: Build,
    job: Job,
    config: TrainingConfig,
    *,
    device: str = "cpu",
    on_epoch: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Train one model; inputs are read batch by batch.

    Args:
        on_epoch: Called with a copy of the model after every epoch.
    """
    config = _settled(config, job)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(derived_seed(job.seed, "training") % 2**63)
        model = build(derived_seed(job.seed, "weights")).to(device).train()
        order = image_format(model, np.asarray(job.records.inputs[:2]))
        _in_format(model, order)
        optimizer = config.make_optimizer(list(model.parameters()))
        for batches in epoch_batches(len(job.records), config, job.seed):
            for rows in batches:
                inputs, wanted = _batch(job, rows, config, device)
                inputs = inputs.contiguous(memory_format=order)
                optimizer.zero_grad(set_to_none=True)
                loss: torch.Tensor = _losses(model(inputs), wanted, config).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if on_epoch is not None:
                on_epoch(_as_built(copy.deepcopy(model)))
    return _as_built(model)


def train_together(
    build: Build, jobs: Sequence[Job], config: TrainingConfig, *, device: str = "cpu"
) -> list[nn.Module]:
    """Train models on equally many records as one batched model (torch.func).

    Inputs are held in memory once for each job.
    """
    num = len(jobs[0].records)
    assert all(len(job.records) == num for job in jobs)
    config = _settled(config, jobs[0])
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(derived_seed(jobs[0].seed, "training") % 2**63)
        models = [build(derived_seed(job.seed, "weights")).to(device) for job in jobs]
        stacked, buffers = stack_module_state(models)
        base = copy.deepcopy(models[0]).to("meta").train()
        losses: Any = vmap(_batched_loss(base, config), randomness="different")
        weights = _FlatWeights(stacked)
        optimizer = config.make_optimizer([weights.flat])
        whole = [_batch(job, np.arange(num), config, device) for job in jobs]
        inputs = torch.stack([x for x, _ in whole])
        wanted = torch.stack([y for _, y in whole])
        del whole
        plans = [epoch_batches(num, config, job.seed) for job in jobs]
        which = torch.arange(len(jobs), device=device)[:, None]
        for epoch in zip(*plans, strict=True):
            for rows in zip(*epoch, strict=True):
                index = torch.from_numpy(np.stack(rows)).to(device)
                found = losses(weights.views, buffers, inputs[which, index], wanted[which, index])
                weights.set_gradient(found.sum())  # models share no weight: each gets its own
                optimizer.step()
    for number, model in enumerate(models):
        with torch.no_grad():
            for name, target in model.named_parameters():
                target.copy_(weights.views[name][number].detach())
    return models


class _FlatWeights:
    """Stacked weights in one tensor, for an optimizer that passes over them once.

    Each begins at a whole vector register and ends with one. Optimizers round the remainder of a
    tensor otherwise than the rest, and which model's weights lie there would depend on the group.

    Attributes:
        flat: All weights, with `grad` set by `set_gradient`.
        views: The same memory by name and shape, to compute losses from.
    """

    def __init__(self, stacked: Weights) -> None:
        sizes = {n: -(-p.numel() // _LANES) * _LANES for n, p in stacked.items()}
        first = next(iter(stacked.values()))
        self.flat = torch.zeros(sum(sizes.values()), device=first.device, dtype=first.dtype)
        self.flat.grad = torch.zeros_like(self.flat)
        self.views: Weights = {}
        self._gradients: list[torch.Tensor] = []
        start = 0
        for name, weights in stacked.items():
            part = slice(start, start + weights.numel())
            view = self.flat[part].view(weights.shape).copy_(weights.detach())
            self.views[name] = view.detach().requires_grad_(True)
            self._gradients.append(self.flat.grad[part].view(weights.shape))
            start += sizes[name]

    def set_gradient(self, loss: torch.Tensor) -> None:
        """Differentiate a loss of the views into `flat.grad`; unused weights get zero."""
        found = torch.autograd.grad(
            loss, list(self.views.values()), allow_unused=True, materialize_grads=True
        )
        for kept, gradient in zip(self._gradients, found, strict=True):
            kept.copy_(gradient)


def group_size(module: nn.Module, num_records: int, input_size: int) -> int:
    """How many models train together within memory."""
    weights = sum(p.numel() for p in module.parameters())
    each = 4 * (4 * weights + num_records * input_size)
    return max(1, _TOGETHER_BYTES // max(1, each))


def config_key(config: TrainingConfig) -> str:
    """Identity of a configuration, for keys of stored models."""
    return json.dumps(config.model_dump(mode="json"), sort_keys=True)


def _batched_loss(
    base: nn.Module, config: TrainingConfig
) -> Callable[[Weights, Weights, torch.Tensor, torch.Tensor], torch.Tensor]:
    def loss(
        parameters: Weights, buffers: Weights, inputs: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        answers = functional_call(base, {**parameters, **buffers}, (inputs,))
        return _losses(answers, wanted, config).mean()

    return loss


def _losses(answers: torch.Tensor, wanted: torch.Tensor, config: TrainingConfig) -> torch.Tensor:
    if config.loss == "mse":
        return (answers.flatten() - wanted.flatten()).square()
    return nn.functional.cross_entropy(answers, wanted, reduction="none")


def _as_built(model: nn.Module) -> nn.Module:
    """In the order of memory of a model that is read from disk: answers then agree bit for bit."""
    return _in_format(model, torch.contiguous_format)


def _in_format(model: nn.Module, order: torch.memory_format) -> nn.Module:
    """The same module, its weights in this order in memory."""
    untyped: Any = model  # torch's types leave this argument out
    untyped.to(memory_format=order)
    return model


def _settled(config: TrainingConfig, job: Job) -> TrainingConfig:
    has_targets = job.records.targets is not None
    return settled(config, has_targets=has_targets)


def _batch(
    job: Job, rows: NDArray[np.int64], config: TrainingConfig, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.from_numpy(np.asarray(job.records.inputs[rows])).to(device)
    if job.soft is not None:
        return inputs, torch.from_numpy(job.soft[rows]).to(device)
    if config.loss == "mse":
        assert job.records.targets is not None  # `settled` saw to it
        return inputs, torch.from_numpy(job.records.targets[rows].astype(np.float32)).to(device)
    return inputs, torch.from_numpy(job.records.labels[rows]).to(device)

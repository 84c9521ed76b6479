"""Dense layers of a model of tokens, and what flows into them.

Nothing of the architecture needs to be named: the model is run on token numbers, and the inputs of
its dense layers are caught on the way. Layers with the same input (queries, keys and values) tell
about the same span, and so stand together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from fl_audit.errors import InputError

Tokens = torch.Tensor


class _CaughtError(Exception):
    """Ends a forward pass early: what was looked for is found."""


@dataclass(frozen=True, slots=True)
class TextLayers:
    """Where to look: names of dense layers that share one input each.

    Attributes:
        first: Layers whose input at a position depends on the token there alone.
        second: Layers whose input depends on the tokens before it, too; none if there are none.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """Runs a model up to a dense layer.

    Attributes:
        module: In eval mode, with the weights that the client received.
        length: Tokens of a sequence.
        vocabulary: Number of tokens.
        padding: Token that fills a sequence up, or None.
        layers: Where to look.
        is_causal: No token has an effect on what flows in at the positions before it.
        masks_padding: Padding gets no gradient, so its inputs are not in the span.
        takes_short: The model takes shorter sequences too, with the same inputs of its layers.
    """

    module: nn.Module
    length: int
    vocabulary: int
    padding: int | None
    layers: TextLayers
    is_causal: bool
    masks_padding: bool
    takes_short: bool

    @property
    def silent(self) -> int | None:
        """The padding token, if it leaves no trace in the gradient."""
        return self.padding if self.masks_padding else None

    def inputs(self, tokens: Tokens, layer: str) -> torch.Tensor:
        """What flows into a dense layer for sequences of tokens, shape (n, length, d)."""
        return _inputs_of(self.module, tokens, layer)


def read(
    module: nn.Module,
    *,
    length: int | None = None,
    padding: int | None = None,
    layers: TextLayers | None = None,
) -> Reader:
    """Find out how a model of tokens is built, by running it.

    Args:
        module: Takes token numbers, shape (n, length), and gives logits, shape (n, classes).
        length: Tokens of a sequence; by default the rows of the model's position embedding.
        padding: By default the padding token of the model's first embedding, if it has one.
        layers: Where to look; by default the first layers of each kind.

    Raises:
        InputError: If the model has no embedding, refuses tokens, or no layer will do.
    """
    module = module.eval()
    embeddings = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    if not embeddings:
        raise _unfit("it has no embedding (torch.nn.Embedding)")
    vocabulary = embeddings[0].num_embeddings
    padding = embeddings[0].padding_idx if padding is None else padding
    if length is None:
        if len(embeddings) == 1:
            raise InputError(
                "length",
                None,
                "the model has no position embedding to read the length of a sequence from",
                "Say how many tokens a sequence has.",
            )
        length = embeddings[1].num_embeddings
    probes = _probes(vocabulary, length, padding)
    groups = _groups(module, probes[0])
    if layers is None:
        layers = _choose(module, groups, probes)
    else:
        _check(layers, groups)
    second = layers.second[0] if layers.second else layers.first[0]
    return Reader(
        module=module,
        length=length,
        vocabulary=vocabulary,
        padding=padding,
        layers=layers,
        is_causal=not _reaches_back(module, second, probes),
        masks_padding=padding is not None and _masks(module, layers.first, probes[0], padding),
        takes_short=_takes_short(module, second, probes[0]),
    )


def _probes(vocabulary: int, length: int, padding: int | None) -> tuple[Tokens, Tokens, Tokens]:
    """A sequence, the same with another first token, and the same with another last token."""
    usable = [token for token in range(min(vocabulary, 8)) if token != padding]
    if len(usable) < 2 or length < 2:
        raise _unfit(f"it has {vocabulary} tokens in sequences of {length}: nothing to tell apart")
    base = torch.full((1, length), float(usable[0]))
    first, last = base.clone(), base.clone()
    first[0, 0] = last[0, -1] = float(usable[1])
    return base, first, last


def _groups(module: nn.Module, tokens: Tokens) -> list[tuple[str, ...]]:
    """Dense layers with inputs of shape (n, length, d), by the input they share, in order."""
    seen: list[tuple[torch.Tensor, list[str]]] = []

    def catcher(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def catch(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            if given[0].ndim != 3 or given[0].shape[1] != tokens.shape[1]:
                return
            for other, names in seen:
                if other is given[0]:
                    names.append(name)
                    return
            seen.append((given[0], [name]))

        return catch

    hooks = [
        layer.register_forward_pre_hook(catcher(name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        with torch.no_grad():
            module(tokens)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise _unfit(f"it refuses tokens of shape {list(tokens.shape)} ({error})") from error
    finally:
        for hook in hooks:
            hook.remove()
    return [tuple(names) for _, names in seen]


def _choose(
    module: nn.Module, groups: Sequence[tuple[str, ...]], probes: tuple[Tokens, Tokens, Tokens]
) -> TextLayers:
    """The first layers whose input is of one token, and the next projections of an attention.

    An attention that projects by one fused layer stands in a group of its own, as the layers of
    an MLP do: then any layer behind an attention will do.
    """
    mixing = [_moves(module, group[0], probes[0], probes[1], slice(1, None)) for group in groups]
    local = [group for group, mixes in zip(groups, mixing, strict=True) if not mixes]
    behind = [group for group, mixes in zip(groups, mixing, strict=True) if mixes]
    if not local:
        raise _unfit("none of its dense layers (torch.nn.Linear) takes single tokens")
    attention = [group for group in behind if len(group) > 1]
    return TextLayers(local[0], next(iter(attention or behind), ()))


def _check(layers: TextLayers, groups: Sequence[tuple[str, ...]]) -> None:
    for name, chosen in (("first", layers.first), ("second", layers.second)):
        if not any(set(chosen) <= set(group) for group in groups) or (
            name == "first" and not chosen
        ):
            raise InputError(
                name,
                list(chosen),
                "must be dense layers with one input of shape (n, length, width) in common",
                f"Those of this model: {' | '.join(', '.join(group) for group in groups)}.",
            )


def _reaches_back(module: nn.Module, layer: str, probes: tuple[Tokens, Tokens, Tokens]) -> bool:
    return _moves(module, layer, probes[0], probes[2], slice(None, -1))


def _moves(module: nn.Module, layer: str, one: Tokens, other: Tokens, where: slice) -> bool:
    """Whether what flows into a layer differs at some positions."""
    before, after = (_inputs_of(module, tokens, layer)[:, where] for tokens in (one, other))
    scale = float(before.abs().max())
    return float((before - after).abs().max()) > 1e3 * torch.finfo(before.dtype).eps * scale


def _takes_short(module: nn.Module, layer: str, tokens: Tokens) -> bool:
    half = tokens.shape[1] // 2
    try:
        short = _inputs_of(module, tokens[:, :half], layer)
    except (RuntimeError, IndexError, TypeError, ValueError):  # then it is run at full length
        return False
    return torch.allclose(short, _inputs_of(module, tokens, layer)[:, :half], atol=1e-5)


def _masks(module: nn.Module, layers: Sequence[str], tokens: Tokens, padding: int) -> bool:
    """Whether a padding token at the end sends no gradient into any of some layers."""
    padded = tokens.clone()
    padded[0, -1] = float(padding)
    caught: list[torch.Tensor] = []

    def catch(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        caught.append(given[0].detach().requires_grad_())
        return (caught[-1],)

    hooks = [module.get_submodule(name).register_forward_pre_hook(catch) for name in layers]
    try:
        logits = module(padded)
    finally:
        for hook in hooks:
            hook.remove()
    gradients = torch.autograd.grad(logits[0, 0], caught)
    return not any(bool(gradient[0, -1].any()) for gradient in gradients)


def _inputs_of(module: nn.Module, tokens: Tokens, layer: str) -> torch.Tensor:
    caught: list[torch.Tensor] = []

    def catch(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        caught.append(given[0].detach())
        raise _CaughtError

    hook = module.get_submodule(layer).register_forward_pre_hook(catch)
    try:
        with torch.no_grad(), suppress(_CaughtError):  # the rest of the pass is of no use
            module(tokens)
    finally:
        hook.remove()
    return caught[0]


def _unfit(why: str) -> InputError:
    return InputError(
        "model",
        "its architecture",
        f"{why}, so tokens cannot be recovered from it",
        "token_recovery is for models that take sequences of token numbers through an embedding "
        "into attention with torch.nn.Linear projections; others: token_sets.",
    )

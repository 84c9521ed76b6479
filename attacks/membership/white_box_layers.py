"""Layers of a model by module path: which ones an attack looks at, and whether two models agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from torch import nn

from fl_audit.errors import InputError, UnknownNameError

_MATRIX = 2  # dimensions of a weight: fewer are biases and scales of normalisation


@dataclass(frozen=True, slots=True)
class Selection:
    """Module paths, as in `model.named_modules()`: "fc3", "features.0", "" for the model itself.

    Attributes:
        gradients: Layers whose loss gradients are used.
        activations: Modules whose outputs are used.
    """

    gradients: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether the model must be looked into, and not only asked."""
        return bool(self.gradients or self.activations)


def select_layers(
    module: nn.Module,
    *,
    gradients: Iterable[str] | None = None,
    activations: Iterable[str] = (),
    last: int = 1,
) -> Selection:
    """Check the chosen layers against a model.

    Args:
        gradients: Module paths; None: the last layers with weights, in the order of definition.
        activations: Module paths.
        last: How many layers None stands for.

    Raises:
        UnknownNameError: If a path is none of the model's, or has no weights to take gradients of.
        InputError: If the model has no layer with weights, or a layer is named twice.
    """
    own = {path: list(m.parameters(recurse=False)) for path, m in module.named_modules()}
    trained = [path for path, parameters in own.items() if parameters]
    if gradients is None:
        weighted = [path for path in trained if any(p.dim() >= _MATRIX for p in own[path])]
        if not weighted:
            raise InputError(
                "model",
                type(module).__name__,
                "has no layer with weights, so there is no gradient to look at",
                "Use gradients = [] and activations = []: an attack on its answers only.",
            )
        gradients = weighted[-last:]
    gradients, activations = tuple(gradients), tuple(activations)
    _check("layer with weights", gradients, trained)
    _check("layer", activations, list(own))
    return Selection(gradients, activations)


def check_same_layers(model_a: nn.Module, model_b: nn.Module) -> None:
    """Refuse two models of different architectures: what one's gradients say, no other's do.

    Compares paths, kinds and shapes of parameters, module by module.

    Raises:
        InputError: Naming the first layer that differs.
    """
    for a, b in zip_longest(_layers(model_a), _layers(model_b)):
        if a == b:
            continue
        path = (a or b or ("",))[0]
        raise InputError(
            f"layer {path!r}",
            (_told(a), _told(b)),
            "the model that the attack is trained on and the attacked one differ first here, and "
            "gradients and activations compare only between equal architectures",
            "Use a model of the same architecture, or gradients = [] and activations = [], which "
            "need only equally many classes.",
        )


_Layer = tuple[str, str, tuple[tuple[str, tuple[int, ...]], ...]]


def _layers(module: nn.Module) -> list[_Layer]:
    """Path, kind and own parameters of each module that computes something."""
    found = []
    for path, part in module.named_modules():
        shapes = tuple((n, tuple(p.shape)) for n, p in part.named_parameters(recurse=False))
        if shapes or not any(part.children()):  # a container's name says nothing
            found.append((path, type(part).__name__, shapes))
    return found


def _told(layer: _Layer | None) -> str:
    if layer is None:
        return "no such layer"
    _, kind, shapes = layer
    return " ".join([kind, *(f"{name}{list(shape)}" for name, shape in shapes)])


def _check(kind: str, names: tuple[str, ...], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, name, [path or '"" (the model itself)' for path in known])
    if len(set(names)) < len(names):
        raise InputError(kind, list(names), "is named twice", "Name every layer once.")

"""What a user's function does, as far as it can be told: the name under which its models are kept.

A digest over its code, its defaults, what it closes over, and the globals it uses, functions among
them in the same way. Installed packages count by name and by the versions of the main ones. What
cannot be told gives no digest, and then nothing is kept on disk.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from attacks.shadows.target import module_digest
from fl_audit.versions import versions

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_INSTALLED = ("site-packages", "dist-packages", "/lib/python")


class UnknownIdentityError(TypeError):
    """A value whose content cannot be told."""


def function_identity(function: Callable[..., Any], *others: Any) -> str | None:
    """A digest that changes with what a function does; None if it cannot be told."""
    try:
        parts = [*_describe(function, {}), *_describe(list(others), {})]
    except UnknownIdentityError:
        return None
    return hashlib.sha256(repr((parts, sorted(versions().items()))).encode()).hexdigest()


def _describe(value: Any, seen: dict[int, Any]) -> Iterator[object]:
    if isinstance(value, _PLAIN):
        yield repr(value)
    elif id(value) in seen:
        yield "seen"
    else:
        seen[id(value)] = value  # held: the id of what is gone may be another's
        yield type(value).__qualname__
        yield from _content(value, seen)


def _content(value: Any, seen: dict[int, Any]) -> Iterator[object]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _describe(item, seen)
    elif isinstance(value, set | frozenset):
        yield sorted(repr(list(_describe(item, seen))) for item in value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _describe(key, seen)
            yield from _describe(item, seen)
    elif isinstance(value, types.CodeType):
        yield value.co_code.hex(), value.co_names, value.co_varnames
        yield from _describe(list(value.co_consts), seen)
    elif isinstance(value, types.ModuleType):
        yield value.__name__
    elif isinstance(value, functools.partial):
        yield from _describe([value.func, value.args, value.keywords], seen)
    elif isinstance(value, types.MethodType):
        yield from _describe([value.__func__, value.__self__], seen)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, type):
        yield from _class(value, seen)
    elif isinstance(value, nn.Module):
        yield module_digest(value)
        yield from _describe(type(value), seen)
    elif isinstance(value, np.ndarray | torch.Tensor):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        yield str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
    elif isinstance(value, types.BuiltinFunctionType | torch.dtype | torch.device):
        yield repr(getattr(value, "__qualname__", value))
    else:
        raise UnknownIdentityError(type(value).__name__)


def _function(function: types.FunctionType, seen: dict[int, Any]) -> Iterator[object]:
    yield function.__module__, function.__qualname__
    if _is_installed(function):
        return
    yield from _describe(function.__code__, seen)
    yield from _describe([function.__defaults__, function.__kwdefaults__], seen)
    try:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError as error:  # a cell that is still empty
        raise UnknownIdentityError("an empty closure") from error
    yield from _describe(cells, seen)
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name
            yield from _describe(function.__globals__[name], seen)


def _class(kind: type, seen: dict[int, Any]) -> Iterator[object]:
    yield kind.__module__, kind.__qualname__
    if _is_installed(kind):
        return
    for name, member in sorted(vars(kind).items()):
        if isinstance(member, types.FunctionType | staticmethod | classmethod | property):
            inner = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
            yield name
            yield from _describe(inner, seen)
        elif isinstance(member, _PLAIN):
            yield name, repr(member)


def _names(code: types.CodeType) -> set[str]:
    """Names that code may look up in its globals, nested functions' code included."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)


def _is_installed(thing: Any) -> bool:
    try:
        file = inspect.getfile(thing)
    except TypeError:  # built in
        return True
    return any(part in file for part in _INSTALLED)

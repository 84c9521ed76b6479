"""What users' code and modules do, as far as it can be told: the name under which models are kept.

A digest over code, its defaults, what it closes over, and the globals and modules it uses,
functions among them in the same way. Installed packages count by name and by the versions of the
main ones. What cannot be told gives no digest, and then nothing is kept on disk.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import importlib
import importlib.util
import logging
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Generic

import numpy as np
import torch
from torch import nn

from fl_audit.versions import versions

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_BY_REPR = (
    *(range, slice, np.dtype, torch.dtype, torch.device, pathlib.PurePath),
    *(types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType),
)
_INSTALLED = ("site-packages", "dist-packages", "/lib/python")
_MACHINERY = {  # of classes: says nothing about what they do, or is told in another way
    "__abstractmethods__",
    "__annotations__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__orig_bases__",
    "__parameters__",
    "__static_attributes__",
    "__weakref__",
    "_abc_impl",
}
_MODULE_STATE = frozenset(vars(nn.Module()))  # told in another way, except hooks
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_Seen = dict[object, tuple[int, Any]]
_NO_NAMES: frozenset[str] = frozenset()


class UnknownIdentityError(TypeError):
    """A value whose content cannot be told."""


def function_identity(function: Callable[..., Any], *others: Any) -> str | None:
    """A digest that changes with what a function does; None if it cannot be told."""
    return _digest([function, list(others)])


def module_digest(module: nn.Module) -> str | None:
    """A digest over weights, buffers, plain attributes, hooks and code; None if it cannot be told.

    Training or evaluation mode, devices and `requires_grad` do not count.
    """
    return _digest([module])


def _digest(values: list[Any]) -> str | None:
    seen: _Seen = {}
    try:
        parts = [part for value in values for part in _describe(value, seen)]
    except (UnknownIdentityError, RecursionError):  # too deep to be told
        return None
    return hashlib.sha256(repr((parts, sorted(versions().items()))).encode()).hexdigest()


def _describe(value: Any, seen: _Seen, names: frozenset[str] = _NO_NAMES) -> Iterator[object]:
    """Parts that tell a value; `names` are those that the code using it may look up in it."""
    if isinstance(value, _PLAIN):
        yield repr(value)
        return
    # different functions use different parts of a module, so that is seen once for each
    key = (id(value), names) if isinstance(value, types.ModuleType) else id(value)
    if key in seen:
        yield "seen", seen[key][0]
        return
    seen[key] = len(seen), value  # held: the id of what is gone may be another's
    yield type(value).__qualname__
    if isinstance(value, types.ModuleType):
        yield from _imported(value, seen, names)
    else:
        yield from _content(value, seen)


def _content(value: Any, seen: _Seen) -> Iterator[object]:
    if isinstance(value, tuple | list | set | frozenset | dict):
        yield from _container(value, seen)
    elif isinstance(value, nn.Module):
        yield from _module(value, seen)
    elif isinstance(value, types.CodeType):
        yield value.co_code.hex(), value.co_names, value.co_varnames
        yield from _describe(list(value.co_consts), seen)
    elif isinstance(value, functools.partial):
        yield from _describe([value.func, value.args, value.keywords], seen)
    elif isinstance(value, types.MethodType):
        yield from _describe([value.__func__, value.__self__], seen)
    elif isinstance(value, staticmethod | classmethod):
        yield from _describe(value.__func__, seen)
    elif isinstance(value, property):
        yield from _describe([value.fget, value.fset], seen)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, type):
        yield from _class(value, seen)
    elif isinstance(value, np.ndarray | np.generic | torch.Tensor):
        yield _array(value)
    elif isinstance(value, _BY_REPR):
        yield repr(value)
    elif isinstance(value, re.Pattern):
        yield value.pattern, value.flags
    elif isinstance(value, logging.Logger):
        yield value.name
    elif isinstance(value, enum.Enum):
        yield from _describe([type(value).__module__, value.name, value.value], seen)
    elif isinstance(value, functools.cached_property):
        yield from _describe(value.func, seen)
    elif isinstance(value, functools._lru_cache_wrapper):
        yield from _describe(value.__wrapped__, seen)
    elif isinstance(value, types.BuiltinFunctionType | np.ufunc):
        yield getattr(value, "__module__", None), value.__name__
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            yield from _describe(owner, seen)  # a bound method in C: what of is part of it
    else:
        yield from _object(value, seen)


def _container(value: Any, seen: _Seen) -> Iterator[object]:
    yield len(value)
    if isinstance(value, set | frozenset):
        yield sorted(repr(list(_describe(item, seen))) for item in value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _describe(key, seen)
            yield from _describe(item, seen)
    else:
        for item in value:
            yield from _describe(item, seen)


def _array(value: Any) -> object:
    """Type, shape and hash of an array or tensor."""
    if isinstance(value, torch.Tensor):
        try:
            own = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
            # not as it is: numpy lacks some types
            data: Any = own.reshape(-1).view(torch.uint8).numpy().data
        except (RuntimeError, ValueError, TypeError) as error:  # sparse, meta, lazy, quantized, ...
            raise UnknownIdentityError("a tensor without plain memory") from error
        return str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()
    if value.dtype.hasobject:
        raise UnknownIdentityError("an array of objects")
    return str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()


def _module(module: nn.Module, seen: _Seen) -> Iterator[object]:
    """Class with its code, weights, buffers (those that are not saved, too), attributes, hooks."""
    yield from _describe(type(module), seen)
    own = vars(module)
    for kind in ("_parameters", "_buffers", "_modules"):
        yield kind
        yield from _describe(dict(own[kind]), seen)
    for name in sorted(own.keys() - _MODULE_STATE):
        yield name
        yield from _describe(own[name], seen)
    for kind in _HOOKS:
        if own.get(kind):
            yield kind
            yield from _describe(list(own[kind].values()), seen)  # keys are running numbers


def _object(value: Any, seen: _Seen) -> Iterator[object]:
    """An instance of a class written in Python, by its class and attributes."""
    kind = type(value)
    if not all(_in_python(base) for base in kind.__mro__ if base not in (object, Generic)):
        raise UnknownIdentityError(kind.__name__)  # its state is out of sight
    yield from _describe(kind, seen)
    slots = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    listed = [n for s in slots for n in ((s,) if isinstance(s, str) else s)]
    for name in sorted({*getattr(value, "__dict__", {}), *listed} - {"__dict__", "__weakref__"}):
        if hasattr(value, name):
            yield name
            yield from _describe(getattr(value, name), seen)


def _function(function: types.FunctionType, seen: _Seen) -> Iterator[object]:
    yield function.__module__, function.__qualname__
    if _is_installed(function.__code__.co_filename, function.__module__):
        return
    yield from _describe(function.__code__, seen)
    yield from _describe([function.__defaults__, function.__kwdefaults__], seen)
    names = frozenset(_names(function.__code__))
    try:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError as error:  # a cell that is still empty
        raise UnknownIdentityError("an empty closure") from error
    for cell in cells:
        yield from _describe(cell, seen, names)
    for name in sorted(names & function.__globals__.keys()):
        yield name
        yield from _describe(function.__globals__[name], seen, names)
    for name in sorted(_imports(function.__code__, function.__globals__)):
        yield from _describe(_load(name), seen, names)


def _class(kind: type, seen: _Seen) -> Iterator[object]:
    yield kind.__module__, kind.__qualname__
    if _is_installed_class(kind):
        return
    yield from _describe(list(kind.__bases__), seen)
    for name, member in sorted(vars(kind).items()):
        if name not in _MACHINERY and not isinstance(member, _DESCRIPTORS):
            yield name
            yield from _describe(member, seen)


def _imported(module: types.ModuleType, seen: _Seen, names: frozenset[str]) -> Iterator[object]:
    """A module of the user's: its text, and what the code that uses it may look up in it.

    The text alone would not do: it says nothing of values that were changed since, nor of other
    modules that it uses.
    """
    yield module.__name__
    file = getattr(module, "__file__", None)
    if _is_installed(file, module.__name__):
        return
    members = vars(module)
    wanted = members.keys() & names
    path = None if file is None else pathlib.Path(file)
    if path is not None and path.is_file():
        yield hashlib.sha256(path.read_bytes()).hexdigest()
    else:  # without a text, all of it
        wanted = {name for name in members if not name.startswith("__")}
    for name in sorted(wanted):
        yield name
        yield from _describe(members[name], seen, names)


def _names(code: types.CodeType) -> set[str]:
    """Names that code may look up in its globals, nested functions' code included."""
    return {name for part in _codes(code) for name in part.co_names}


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _imports(code: types.CodeType, namespace: dict[str, Any]) -> set[str]:
    """Full names of the modules that code imports while it runs."""
    found = set()
    for part in _codes(code):
        constants: list[Any] = []
        for step in dis.get_instructions(part):
            if step.opname == "IMPORT_NAME":
                level = constants[-2] if len(constants) > 1 else 0
                name = "." * level + step.argval
                package = namespace.get("__package__") or ""
                if level and not package:
                    raise UnknownIdentityError(f"import of {name}")
                found.add(importlib.util.resolve_name(name, package))
            elif step.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
                constants.append(step.argval)
    return found


def _load(name: str) -> types.ModuleType | str:
    """A module that a function imports when it is called; the name alone if it is not ours to see.

    A module of the user's that is not loaded yet is imported, as the function would do.
    """
    if name in sys.modules:
        return sys.modules[name]
    root = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(root)
        if spec is None or _is_installed(spec.origin, root):
            return name
        return importlib.import_module(name)
    except Exception as error:  # a user's module raises anything when it is imported
        raise UnknownIdentityError(f"import of {name}") from error


def _in_python(kind: type) -> bool:
    """Whether all state of its instances is in attributes: a class in C has members in C."""
    in_c = (types.BuiltinFunctionType, types.MethodDescriptorType, types.GetSetDescriptorType)
    members = vars(kind)
    return "__module__" in members and not any(
        isinstance(member, in_c)
        or (isinstance(member, types.MemberDescriptorType) and "__slots__" not in members)
        for name, member in members.items()
        if name not in ("__dict__", "__weakref__")
    )


def _is_installed_class(kind: type) -> bool:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return _is_installed(file, kind.__module__)


def _is_installed(file: str | None, module: str | None) -> bool:
    """By the file; what has none (built in, or typed into an interpreter) by the module's name."""
    if file is not None and not file.startswith("<") and file not in ("built-in", "frozen"):
        return any(part in file for part in _INSTALLED)
    root = (module or "").partition(".")[0]
    return root != "__main__" and root in sys.stdlib_module_names

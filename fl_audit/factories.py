"""Names of code in configuration: `"module:function"`, and when it may be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from pydantic import Field, JsonValue

from fl_audit.errors import InputError
from fl_audit.results import Record

BUILT_IN = "simulations.models"  # the one module whose factories a foreign file may name


class ModelSpec(Record):
    """Which architecture the arrays of a trace belong to.

    `factory(**settings)` returns a torch module. A run directory may come from somebody else, so
    a factory outside fl-audit is imported only when the user names it (`trusted=True`).
    """

    factory: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    settings: dict[str, JsonValue] = Field(default_factory=dict)

    def builder(self, *, trusted: bool) -> Callable[[], Any]:
        """A function that builds the module.

        Raises:
            InputError: If the factory is not fl-audit's own and `trusted` is False, or if it
                cannot be imported.
        """
        module = self.factory.partition(":")[0]
        if module != BUILT_IN and not trusted:
            raise InputError(
                "model.factory",
                self.factory,
                "this run directory names code of its own, which is not imported unasked",
                f"If you trust it, name it yourself: --model {self.factory}",
            )
        function = load_attribute(self.factory, "model.factory")
        if not trusted and getattr(function, "__module__", None) != BUILT_IN:
            raise InputError(  # what that module merely imports is not a model of ours
                "model.factory",
                self.factory,
                f"is not defined in {BUILT_IN}",
                f"If you trust it, name it yourself: --model {self.factory}",
            )
        return lambda: function(**self.settings)


def load_attribute(path: str, name: str) -> Any:
    """Import `"module:attribute"`.

    Raises:
        InputError: If the module is missing or fails when it is imported, or if the attribute is
            missing.
    """
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # an import runs the module's code
        raise InputError(
            name,
            path,
            f"cannot be imported ({type(error).__name__}: {error})",
            'Write "module:function"; the module must be importable from here (PYTHONPATH).',
        ) from error

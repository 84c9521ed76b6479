"""Defences by Flower's own class names: a strategy wrapper, and the client mods it relies on."""

from __future__ import annotations

import inspect
from typing import Any

from flwr.clientapp import mod as flower_mods
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy

from fl_audit.errors import InputError, UnknownNameError, did_you_mean
from simulations.scenario import Federation, Named

_WRAPPER = "DifferentialPrivacy"
STRATEGIES = {
    name: cls
    for name in flower_strategies.__all__
    if inspect.isclass(cls := getattr(flower_strategies, name))
    and issubclass(cls, Strategy)
    and not inspect.isabstract(cls)
    and "Xgb" not in name  # trees, not arrays
}
WRAPPERS = {name: cls for name, cls in STRATEGIES.items() if name.startswith(_WRAPPER)}
_MANAGED = {
    "fraction_train": "Set federation.fraction instead.",
    "fraction_evaluate": "Clients are not asked to evaluate; the server measures on data.test.",
    "min_train_nodes": "All sampled clients are waited for; set federation.fraction instead.",
    "min_evaluate_nodes": "Clients are not asked to evaluate.",
    "min_available_nodes": "All clients are waited for; set federation.clients instead.",
    "weighted_by_key": "Clients reply with Flower's usual keys.",
    "arrayrecord_key": "Clients reply with Flower's usual keys.",
    "configrecord_key": "Clients read Flower's usual keys.",
    "num_sampled_clients": "It follows from federation.clients and federation.fraction.",
}
"""Arguments that the scenario's own tables decide: given twice, they could contradict."""
_CLIENT_MODS = {
    "DifferentialPrivacyClientSideFixedClipping": flower_mods.fixedclipping_mod,
    "DifferentialPrivacyClientSideAdaptiveClipping": flower_mods.adaptiveclipping_mod,
}


def build_strategy(strategy: Named, defence: Named, federation: Federation) -> Strategy:
    """The server's strategy, wrapped by its defence.

    Raises:
        UnknownNameError: If Flower has no such strategy.
        InputError: If it refuses its arguments.
    """
    plain = {name: cls for name, cls in STRATEGIES.items() if name not in WRAPPERS}
    if strategy.name not in plain:
        raise UnknownNameError("strategy", strategy.name, plain)
    _refuse_managed("strategy", strategy)
    _refuse_managed("defence", defence)
    sampled = max(1, int(federation.clients * federation.fraction))
    given = {
        "fraction_train": federation.fraction,
        "fraction_evaluate": 0.0,
        "min_train_nodes": sampled,
        "min_evaluate_nodes": 0,
        "min_available_nodes": federation.clients,  # else round 1 starts with whoever is there
    }
    inner = _construct(plain[strategy.name], "strategy", {**given, **strategy.arguments})
    if defence.name == "none":
        _refuse_arguments(defence)
        return inner
    if defence.name not in WRAPPERS:
        raise UnknownNameError("defence", defence.name, ["none", *WRAPPERS])
    arguments = {"num_sampled_clients": sampled, **defence.arguments}
    return _construct(WRAPPERS[defence.name], "defence", {"strategy": inner, **arguments})


def client_mods(defence: Named) -> list[Any]:
    """Mods that must wrap the client's training for this defence to work."""
    return [_CLIENT_MODS[defence.name]] if defence.name in _CLIENT_MODS else []


def _construct(cls: type[Strategy], table: str, arguments: dict[str, Any]) -> Strategy:
    known = [
        name
        for base in cls.__mro__
        if "__init__" in vars(base)
        for name, p in inspect.signature(base).parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    for name, value in arguments.items():
        if name not in known:
            guess = did_you_mean(name, known)
            raise InputError(
                f"{table}.{name}",
                value,
                f"{cls.__name__} has no such argument",
                f"{guess}It takes: {', '.join(sorted(set(known) - {'strategy', 'accountant'}))}",
            )
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(
            table,
            {k: v for k, v in arguments.items() if k != "strategy"},
            f"{cls.__name__} refuses these arguments ({error})",
            f"Change them in [{table}].",
        ) from error


def _refuse_managed(table: str, named: Named) -> None:
    for name in named.arguments:
        if name in _MANAGED:
            raise InputError(
                f"{table}.{name}",
                named.arguments[name],
                "the scenario decides this elsewhere",
                _MANAGED[name],
            )


def _refuse_arguments(defence: Named) -> None:
    for name, value in defence.arguments.items():
        raise InputError(
            f"defence.{name}", value, "defence 'none' takes no settings", "Name a defence."
        )

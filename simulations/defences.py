"""Defences by Flower's own class names: a strategy wrapper, and the client mods it relies on."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from flwr.clientapp import mod as flower_mods
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fl_audit.errors import InputError, UnknownNameError, did_you_mean
from fl_audit.local_training import LocalTraining, LocalTrainings
from simulations.scenario import Federation, Named, Scenario

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


def local_trainings(scenario: Scenario) -> LocalTrainings:
    """How clients train in effect: FedProx sends every client its proximal term.

    Raises:
        InputError: If `training` asks for another one, or the strategy's is impossible.
    """
    trainings = scenario.training.all()
    if scenario.strategy.name != "FedProx":
        return trainings
    default = inspect.signature(flower_strategies.FedProx).parameters["proximal_mu"].default
    mu = scenario.strategy.arguments.get("proximal_mu", default)
    named = {  # 0 in [training] is its default; a client's own table says what it means
        f"training.clients.{client}.proximal_mu": table["proximal_mu"]
        for client, table in scenario.training.clients.items()
        if "proximal_mu" in table
    }
    if scenario.training.proximal_mu:
        named["training.proximal_mu"] = scenario.training.proximal_mu
    for key, value in named.items():
        if value != mu:
            raise InputError(
                key,
                value,
                f"strategy.proximal_mu = {mu} differs, and FedProx sends that to every client",
                f"Leave {key} out, or set both to one value.",
            )
    return LocalTrainings(
        default=_with_mu(trainings.default, mu),
        clients={client: _with_mu(own, mu) for client, own in trainings.clients.items()},
    )


def client_mods(defence: Named) -> list[Any]:
    """Mods that must wrap the client's training for this defence to work."""
    return [_CLIENT_MODS[defence.name]] if defence.name in _CLIENT_MODS else []


def _with_mu(training: LocalTraining, mu: Any) -> LocalTraining:
    try:
        return LocalTraining.model_validate({**training.model_dump(), "proximal_mu": mu})
    except ValidationError as error:
        raise InputError(
            "strategy.proximal_mu",
            mu,
            error.errors(include_url=False)[0]["msg"],
            "Give a number, 0 or more.",
        ) from error


def _construct(cls: type[Strategy], table: str, arguments: dict[str, Any]) -> Strategy:
    known = _parameters(cls)
    for name, value in arguments.items():
        if name not in known:
            guess = did_you_mean(name, known)
            raise InputError(
                f"{table}.{name}",
                value,
                f"{cls.__name__} has no such argument",
                f"{guess}It takes: {', '.join(sorted(set(known) - {'strategy', 'accountant'}))}",
            )
        _refuse_other_type(f"{table}.{name}", value, known[name])
    try:
        return cls(**arguments)
    except Exception as error:  # Flower's checks raise TypeError, ValueError or whatever fails
        raise InputError(
            table,
            {k: v for k, v in arguments.items() if k != "strategy"},
            f"{cls.__name__} refuses these arguments ({error})",
            f"Change them in [{table}].",
        ) from error


def _parameters(cls: type[Strategy]) -> dict[str, Any]:
    """Names and types of what a class and its bases take."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        hints = get_type_hints(vars(base)["__init__"])
        for name, p in inspect.signature(base).parameters.items():
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                found.setdefault(name, hints.get(name, Any))
    return found


def _refuse_other_type(name: str, value: Any, wanted: Any) -> None:
    """Flower does not look at types: a word for a number would fail in some round."""
    rules = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        TypeAdapter(wanted, config=rules).validate_python(value)
    except ValidationError as error:
        rule = error.errors(include_url=False)[0]["msg"]
        raise InputError(
            name, value, rule[0].lower() + rule[1:], f"Change {name} in the scenario."
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

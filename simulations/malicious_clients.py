"""Malicious clients of a scenario: their behaviour, what they have, and where the lie goes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Context
from flwr.clientapp.typing import Mod
from pydantic import ValidationError

from attacks.devices import choose_device
from attacks.federated.client_behaviours import BEHAVIOURS, Behaviour, Means
from fl_audit.errors import InputError, did_you_mean
from fl_audit.factories import ModelSpec
from fl_audit.files import Arrays
from fl_audit.game import MembershipGame
from fl_audit.records import Records
from fl_audit.trace.query import load_weights
from simulations.adversaries import is_servers
from simulations.defences import client_mods, local_trainings
from simulations.models import seeded
from simulations.population import Population
from simulations.scenario import AdversaryTable, Scenario
from simulations.training import train
from strategies.malicious_clients import malicious_mod


@dataclass(frozen=True, slots=True, eq=False)
class Circumstances:
    """What client calls of one federation work with.

    Attributes:
        scenario: Its seed is that of the draws.
        clients: What each client trains on, by partition id.
        game: The public part.
    """

    scenario: Scenario
    clients: Sequence[Records]
    game: MembershipGame
    model: ModelSpec

    def targets(self) -> Records:
        """Records that a malicious client asks about: candidates and null candidates alike."""
        return Records.concatenate([self.game.candidates, self.game.null])


def client_behaviour(adversary: AdversaryTable) -> Behaviour | None:
    """The behaviour of malicious clients; None if there is no adversary, or it is the server.

    Raises:
        InputError: If a setting is unknown or impossible.
    """
    if adversary.name not in BEHAVIOURS or is_servers(adversary):
        return None
    kind = BEHAVIOURS[adversary.name]
    try:
        return kind.model_validate(adversary.settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        known = sorted(kind.model_fields)
        is_unknown = first["type"] == "extra_forbidden"
        raise InputError(
            f"adversary.{key}",
            first["input"],
            "unknown setting" if is_unknown else first["msg"],
            f"{did_you_mean(key, known) if is_unknown else ''}{adversary.name!r} takes: "
            f"{', '.join(known)}",
        ) from error


def check_malicious_clients(scenario: Scenario, population: Population, model: ModelSpec) -> None:
    """Refuse what malicious clients cannot do, before the first round.

    Raises:
        InputError: If no client is named, the threat model is not of malicious clients, a setting
            is wrong, or a client lacks what its behaviour needs.
    """
    adversary = scenario.adversary
    behaviour = client_behaviour(adversary)
    if behaviour is None:
        return
    if not adversary.clients:
        raise InputError(
            "adversary.clients",
            [],
            f"{adversary.name!r} is what malicious clients do, and none is named",
            "Name them: [adversary] clients = [0].",
        )
    threat = scenario.adversary_model()
    if threat.activity != "malicious" or threat.who not in ("client", "coalition"):
        raise InputError(
            "threat_model.preset",
            scenario.threat_model.preset,
            f"adversary {adversary.name!r} acts through clients, and this threat model is of a "
            f"{threat.activity} {threat.who}",
            'Set threat_model.preset = "malicious-client".',
        )
    setting = Circumstances(scenario, population.clients, population.game, model)
    for client in adversary.clients:
        behaviour.check(_means(setting, client))


def mods_of(
    scenario: Scenario, state: Callable[[Context], Circumstances], *, is_shadow: bool = False
) -> list[Mod]:
    """All mods that wrap a client's training: its defence's, and the lie inside or outside them.

    Args:
        state: What a call works with, from its context.
        is_shadow: The federation is one that the adversary simulates, on other records.
    """
    defence: list[Any] = client_mods(scenario.defence)
    behaviour = client_behaviour(scenario.adversary)
    if behaviour is None or (is_shadow and not behaviour.in_shadows):
        return defence
    lie = malicious_mod(
        behaviour,
        means=lambda context: _means(state(context), int(context.node_config["partition-id"])),
        draws=lambda number, client, context: state(context).scenario.seeds(
            "adversary", number, client
        ),
        clients=frozenset(scenario.adversary.clients),
    )
    return [*defence, lie] if scenario.adversary.position == "inside" else [lie, *defence]


def _means(setting: Circumstances, client: int) -> Means:
    scenario, own = setting.scenario, setting.clients[client]

    def retrain(before: Arrays, extra: Records, server_round: int) -> Arrays:
        model = seeded(setting.model, seed=0)
        load_weights(model, before)
        train(
            model,
            Records.concatenate([own, extra]),
            local_trainings(scenario).of(client),
            server_round=server_round,
            rng=scenario.seeds("adversary", server_round, client, "training"),
            device=choose_device(scenario.device),
        )
        return {name: value.cpu().numpy() for name, value in model.state_dict().items()}

    return Means(
        model=setting.model.builder(trusted=True),  # a scenario's author names this code
        targets=setting.targets(),
        own=own,
        num_classes=setting.game.num_classes,
        retrain=retrain,
    )

"""The malicious server of a scenario: its behaviour, what it has, and where it is put."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.serverapp.strategy import Strategy
from pydantic import ValidationError

from attacks.devices import choose_device
from attacks.federated.server_behaviours import ServerBehaviour, ServerMeans
from fl_audit.errors import InputError, did_you_mean
from fl_audit.factories import ModelSpec
from fl_audit.game import MembershipGame
from fl_audit.records import Records
from fl_audit.threat_model import NOTHING_SEEN, Knowledge
from simulations.adversaries import is_servers
from simulations.scenario import Scenario
from strategies.malicious import SERVER, MaliciousStrategy


def server_behaviour(scenario: Scenario) -> ServerBehaviour | None:
    """What a malicious server does; None if there is no adversary, or it is the clients.

    Raises:
        InputError: If a setting is unknown or impossible, or the threat model is of another
            adversary.
    """
    adversary = scenario.adversary
    if not is_servers(adversary):
        return None
    threat = scenario.adversary_model()
    if threat.activity != "malicious" or threat.who != "server":
        raise InputError(
            "threat_model.preset",
            scenario.threat_model.preset,
            f"adversary {adversary.name!r} is what a malicious server does, and this threat model "
            f"is of a {threat.activity} {threat.who}",
            'Set threat_model.preset = "malicious-server".',
        )
    kind = SERVER[adversary.name]
    try:
        behaviour = kind.model_validate(adversary.settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, known = str(first["loc"][0]), sorted(kind.model_fields)
        is_unknown = first["type"] == "extra_forbidden"
        raise InputError(
            f"adversary.{key}",
            first["input"],
            "unknown setting" if is_unknown else first["msg"],
            f"{did_you_mean(key, known) if is_unknown else ''}{adversary.name!r} takes: "
            f"{', '.join(known)}",
        ) from error
    _refuse_unknown_victims(behaviour, scenario.federation.clients)
    return behaviour


def check_malicious_server(scenario: Scenario, game: MembershipGame, model: ModelSpec) -> None:
    """Refuse, before the first round, what a malicious server cannot do.

    Raises:
        InputError: As `server_behaviour`, or if the behaviour lacks something.
        ObservationError: If the threat model does not grant what the behaviour must know.
    """
    behaviour = server_behaviour(scenario)
    if behaviour is not None:
        threat, name = scenario.threat_model.model(), scenario.adversary.name
        threat.require(f"adversary {name!r}", NOTHING_SEEN, behaviour.knows)
        behaviour.check(_means(scenario, game, model))


def with_malice(
    inner: Strategy,
    scenario: Scenario,
    game: MembershipGame,
    model: ModelSpec,
    *,
    clients: Mapping[int, int],
) -> Strategy:
    """The strategy as this server runs it: `inner` itself if the server is not malicious.

    Args:
        game: The public part; its candidates and null candidates are the targets.
        clients: Node id -> partition id.
    """
    behaviour = server_behaviour(scenario)
    if behaviour is None:
        return inner
    means = _means(scenario, game, model)
    return MaliciousStrategy(inner, behaviour=behaviour, means=means, clients=clients)


def _means(scenario: Scenario, game: MembershipGame, model: ModelSpec) -> ServerMeans:
    targets = Records.concatenate([game.candidates, game.null])
    has_auxiliary = Knowledge.AUXILIARY_DATA in scenario.threat_model.model().knows
    # their turn comes by lot: like records stand side by side in the game
    order = scenario.seeds("adversary", "targets").permutation(len(targets))
    asked = None
    if game.asked is not None and game.null_asked is not None:
        asked = np.concatenate([game.asked, game.null_asked])[order]
    return ServerMeans(
        model=model.builder(trusted=True),  # a scenario's author names this code
        targets=targets.take(order),
        asked=asked,
        auxiliary=game.auxiliary if has_auxiliary else game.auxiliary.take([]),
        rounds=scenario.federation.rounds,
        device=choose_device(scenario.device),
    )


def _refuse_unknown_victims(behaviour: ServerBehaviour, num_clients: int) -> None:
    victims = behaviour.victims
    if victims is None:
        return
    unknown = [client for client in victims if not 0 <= client < num_clients]
    if unknown or not victims or len(set(victims)) < len(victims):
        raise InputError(
            "adversary.victims",
            victims,
            f"must name at least one client, each once; clients are 0 to {num_clients - 1}",
            "Name clients that exist, or leave it out for all.",
        )

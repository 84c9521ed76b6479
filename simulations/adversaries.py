"""Active adversaries that a scenario can name."""

from __future__ import annotations

from fl_audit.errors import InputError, UnknownNameError
from simulations.scenario import AdversaryTable

CLIENT: dict[str, str] = {
    "gradient_ascent": "attacks.federated.client_behaviours:GradientAscent",
    "hitaj_gan": "attacks.federated.client_behaviours:HitajGan",
    "poison": "attacks.federated.client_behaviours:Poison",
    "scaling": "attacks.federated.client_behaviours:Scaling",
    "sign_flip": "attacks.federated.client_behaviours:SignFlip",
}
"""What malicious clients do: name -> "module:settings class"."""

SERVER: dict[str, str] = {
    "client_specific": "attacks.federated.server_behaviours:ClientSpecific",
    "fishing": "attacks.reconstruction.server_behaviours:Fishing",
    "gradient_ascent": "attacks.federated.server_behaviours:GradientAscent",
    "imprint": "attacks.reconstruction.server_behaviours:Imprint",
    "isolated_ascent": "attacks.federated.server_behaviours:IsolatedAscent",
    "isolation": "attacks.federated.server_behaviours:Isolation",
    "quantile_traps": "attacks.reconstruction.server_behaviours:QuantileTraps",
    "relu_trap": "attacks.federated.server_behaviours:ReluTrap",
    "trap_weights": "attacks.reconstruction.server_behaviours:TrapWeights",
}
"""What a malicious server does: likewise. A name that both have is the server's unless clients are
named."""


def is_servers(adversary: AdversaryTable) -> bool:
    """Whether this is a behaviour of the server's."""
    return adversary.name in SERVER and not (adversary.clients and adversary.name in CLIENT)


def check_adversary(adversary: AdversaryTable) -> None:
    """Refuse a behaviour that nobody knows, and clients where the server acts.

    Raises:
        UnknownNameError: If there is no such behaviour.
        InputError: If clients are named that have no part in it, or a place among their mods.
    """
    if adversary.name not in {"none", *CLIENT, *SERVER}:
        raise UnknownNameError("adversary", adversary.name, {"none", *CLIENT, *SERVER})
    if adversary.clients and (is_servers(adversary) or adversary.name == "none"):
        raise InputError(
            "adversary.clients",
            adversary.clients,
            f"adversary {adversary.name!r} acts through no client",
            "Leave it out; `victims` names the clients that a malicious server singles out.",
        )
    if adversary.position != "outside" and (is_servers(adversary) or adversary.name == "none"):
        raise InputError(
            "adversary.position",
            adversary.position,
            f"adversary {adversary.name!r} acts through no client, so no mod stands around its lie",
            "Leave it out.",
        )
    for key in adversary.settings if adversary.name == "none" else ():
        raise InputError(
            f"adversary.{key}",
            adversary.settings[key],
            "adversary 'none' takes no settings",
            "Name an adversary.",
        )

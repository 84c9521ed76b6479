"""Malicious clients as Flower client mods.

    app = ClientApp(mods=[malicious_mod(Scaling(factor=5.0), means=..., draws=...)])

Mods before the defence's own (outermost) act on what the defence leaves of an honest update, so the
lie passes undefended ("outside"); a mod after them is clipped and noised like everything else
("inside").
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray

from attacks.federated.client_behaviours import Behaviour, Means, Turn
from strategies.messages import arrays_of

MEMORY = "fl-audit-adversary"  # key of context.state: what a malicious client keeps


def malicious_mod(
    behaviour: Behaviour,
    *,
    means: Callable[[Context], Means],
    draws: Callable[[int, int, Context], np.random.Generator],
    clients: Collection[int] | None = None,
) -> Mod:
    """A mod under which a client lies about its training; other messages pass.

    The reply keeps its metrics (a malicious client claims as many examples as it would honestly).

    Args:
        behaviour: What it does.
        means: What the client has, from its context.
        draws: (round, partition id, context) -> the generator of that call.
        clients: Partition ids that lie; every client that has the mod, if None.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        client = int(context.node_config.get("partition-id", 0))
        if clients is not None and client not in clients:
            return call_next(message, context)
        server_round = round_of(message)
        key, received = next(iter(message.content.array_records.items()), ("", None))
        if received is None or server_round is None:
            return call_next(message, context)
        before = arrays_of(received)  # copied: mods further in may change the message
        reply = call_next(message, context)
        if reply.has_error() or key not in reply.content.array_records:
            return reply
        memory = _recall(context)
        turn = Turn(
            server_round=server_round,
            before=before,
            after=arrays_of(reply.content.array_records[key]),
            rng=draws(server_round, client, context),
            memory=memory,
        )
        forged = behaviour.forge(turn, means(context))
        if memory:
            context.state.array_records[MEMORY] = _record(memory)
        names = list(reply.content.array_records[key])
        reply.content.array_records[key] = _record({n: np.asarray(forged[n]) for n in names})
        return reply

    return mod


def round_of(message: Message) -> int | None:
    """The round that a message belongs to; None if it does not say."""
    for config in message.content.config_records.values():
        if "server-round" in config:
            return int(str(config["server-round"]))
    return None


def _recall(context: Context) -> dict[str, NDArray[np.generic]]:
    kept = context.state.array_records.get(MEMORY)
    return {} if kept is None else arrays_of(kept)


def _record(arrays: dict[str, NDArray[np.generic]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})

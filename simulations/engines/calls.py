"""What every engine owes a call: its configuration, one thread, and draws of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_audit.randomness import derived_seed
from simulations.global_generators import seeded_globals

RunConfig = Mapping[str, bool | float | int | str]


class RepeatableClientApp(ClientApp):
    """A client app whose calls depend on (seed, message type, round, partition) only.

    Flower's own strategies and mods draw from `random` and `np.random`, dropout from torch's global
    generator: all are seeded for each call, so it does not matter which process makes it, or in
    which order.
    """

    def __init__(self, app: ClientApp, *, run_config: RunConfig, seed: int) -> None:
        super().__init__()
        self._app, self._run_config, self._seed = app, dict(run_config), seed

    def __call__(self, message: Message, context: Context) -> Message:
        """Call the app it wraps, with one torch thread: two change the bits of a small model."""
        torch.set_num_threads(1)
        given = context.run_config
        context.run_config = {**given, **self._run_config}
        try:
            with seeded_globals(derived_seed(self._seed, "call", *_path(message, context))):
                return self._app(message, context)
        finally:
            context.run_config = given  # an engine may refuse a context that comes back changed


class RepeatableStrategy(Strategy):
    """A strategy whose draws depend on (seed, hook, round) only.

    Client sampling and DP noise come from the process's own generators, from which other threads
    of an engine draw as well: so they are seeded for each hook, not once.
    """

    def __init__(self, inner: Strategy, *, seed: int) -> None:
        self.inner, self._seed = inner, seed

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, seeded."""
        with self._seeded("configure_train", server_round):
            return list(self.inner.configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate, seeded."""
        with self._seeded("aggregate_train", server_round):
            return self.inner.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, seeded."""
        with self._seeded("configure_evaluate", server_round):
            return list(self.inner.configure_evaluate(server_round, arrays, config, grid))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Delegate, seeded."""
        with self._seeded("aggregate_evaluate", server_round):
            return self.inner.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Delegate."""
        self.inner.summary()

    def _seeded(self, hook: str, server_round: int) -> AbstractContextManager[None]:
        return seeded_globals(derived_seed(self._seed, hook, server_round))


def _path(message: Message, context: Context) -> tuple[int | str, ...]:
    configs = message.content.config_records.values()
    rounds = [int(c["server-round"]) for c in configs if "server-round" in c]  # type: ignore[arg-type]
    return (message.metadata.message_type, int(context.node_config["partition-id"]), *rounds)

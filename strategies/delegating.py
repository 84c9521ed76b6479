"""A strategy around a strategy: every hook that a wrapper does not change is the inner one's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_audit.errors import InputError


class DelegatingStrategy(Strategy):
    """Base of wrappers. Flower's own loop of rounds calls the wrapper's hooks.

    Args:
        inner: The strategy that is wrapped.

    Raises:
        InputError: If `inner` drives its own rounds.
    """

    def __init__(self, inner: Strategy) -> None:
        if type(inner).start is not Strategy.start:
            raise InputError(
                "inner",
                type(inner).__name__,
                "it overrides start(), so its rounds would pass this wrapper unseen",
                "Move its logic into the configure_/aggregate_ hooks, which a wrapper can see.",
            )
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """Whatever this wrapper lacks, the inner strategy may have."""
        if name in ("inner", "recorder"):  # not set yet: do not ask for it in a circle
            raise AttributeError(name)
        return getattr(self.inner, name)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate."""
        return self.inner.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Delegate."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Delegate."""
        self.inner.summary()

"""The `ray` engine: Flower's simulation on Ray, on this machine or on an existing cluster.

Flower's entry point for this is being replaced upstream; this is the one file to change then.
"""

from __future__ import annotations

import math
import socket
import threading
import time
import warnings
from collections.abc import Iterable
from functools import partial

import ray
from flwr.app import Context, Message
from flwr.app.typing import ConfigRecordValues
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fl_audit.errors import AuditError, InputError, clean_text
from simulations.engines.calls import RepeatableClientApp, RunConfig
from simulations.global_generators import seeded_globals
from strategies.ordered_grid import OrderedGrid

Settings = dict[str, ConfigRecordValues]
_POLL = 0.05  # seconds between looks for replies
_CONNECT = 5.0  # seconds for a cluster's address to answer
_DEAD = ("RayActorError", "ActorDiedError", "ActorUnavailableError", "WorkerCrashedError")


class EngineError(AuditError):
    """The engine itself failed: what was recorded is kept, and the run can be resumed."""


def ray_engine(
    *,
    ray_address: str | None = None,
    cpus_per_client: float = 1.0,
    gpus_per_client: float = 0.0,
) -> partial[None]:
    """`run_ray` with these options, after they were checked.

    Raises:
        InputError: If nothing answers at the address, or a client would get no CPU.
    """
    if ray_address is not None:
        _check_address(ray_address)
    if not (math.isfinite(cpus_per_client) and cpus_per_client > 0):
        raise InputError(
            "cpus_per_client", cpus_per_client, "must be above 0", "Give a number of CPUs, or 0.5."
        )
    if not (math.isfinite(gpus_per_client) and gpus_per_client >= 0):
        raise InputError(
            "gpus_per_client", gpus_per_client, "must be 0 or more", "Give a number of GPUs."
        )
    return partial(
        run_ray,
        address=ray_address,
        cpus_per_client=cpus_per_client,
        gpus_per_client=gpus_per_client,
    )


def run_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    num_clients: int,
    run_config: RunConfig,
    seed: int,
    address: str | None = None,
    cpus_per_client: float = 1.0,
    gpus_per_client: float = 0.0,
) -> None:
    """Run a server app against `num_clients` virtual nodes on Ray.

    Args:
        address: "host:port" of an existing Ray cluster; by default Ray starts on this machine.
        cpus_per_client: CPUs that Ray sets aside for one client call.
        gpus_per_client: GPUs likewise.

    Raises:
        EngineError: If a worker died, or Ray could not start.
        Exception: Whatever the server app raises.
    """
    stop = threading.Event()
    failures: list[BaseException] = []
    watched = ServerApp()

    @watched.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config = {**context.run_config, **run_config}
        try:
            with seeded_globals(seed):
                server_app(_WatchedGrid(grid, stop), context)
        except Exception as error:
            failures.append(error)
            raise

    ours = not ray.is_initialized()  # a Ray that somebody else started is left running
    # without an address Ray would join, or wait minutes for, whatever cluster was last started here
    init: Settings = {
        "include_dashboard": False,
        "log_to_driver": False,
        "address": address or "local",
    }
    resources: Settings = {"num_cpus": cpus_per_client, "num_gpus": gpus_per_client}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the entry point will be replaced
            run_simulation(
                watched,
                RepeatableClientApp(client_app, run_config=run_config, seed=seed),
                num_clients,
                backend_config={"init_args": init, "client_resources": resources},
            )
    except Exception as error:
        if failures:
            raise failures[0] from None
        raise EngineError(
            f"Ray could not run the federation: {clean_text(error)}. See Ray's own messages "
            "above; check --ray-address, and that the cluster has this Python and fl-audit."
        ) from error
    finally:
        stop.set()  # after Ctrl-C the server app's thread must not wait for replies for ever
        if ours and ray.is_initialized():
            ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself waits for minutes for a cluster that is not there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(
            "ray_address", address, "must be host:port", "Write 10.0.0.5:6379, for example."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: no such name can exist
        raise InputError(
            "ray_address",
            address,
            f"nothing answers there ({error})",
            "Start the cluster (`ray start --head`), or mend the address.",
        ) from error


class _WatchedGrid(OrderedGrid):
    """Flower's grid, polled so that it can be stopped, and watched for dead workers."""

    def __init__(self, inner: Grid, stop: threading.Event) -> None:
        super().__init__(inner, {})
        self._stop = stop

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, then look for replies until all are there.

        Raises:
            EngineError: If a worker died, or the run was stopped.
        """
        waiting = set(self.inner.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            found = list(self.inner.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            replies += found
            if self._stop.is_set():
                raise EngineError("the run was stopped while clients were working")
            if waiting and not found:
                time.sleep(_POLL)
        for reply in replies:
            _refuse_dead_worker(reply)
        return self._ordered(replies)


def _refuse_dead_worker(reply: Message) -> None:
    reason = (reply.error.reason or "") if reply.has_error() else ""
    if any(name in reason for name in _DEAD):
        raise EngineError(
            "a Ray worker died while a client was training (killed, or out of memory). Flower "
            "would go on with a pool that no longer answers, so the run stops here. Recorded "
            "rounds are kept: run again with --resume, with fewer clients at a time "
            f"(a larger --cpus-per-client) if memory ran out. Ray says: {clean_text(reason, 200)}"
        )

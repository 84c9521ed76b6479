"""A client mod that looks at the model before it trains on it, and warns or refuses.

    app = ClientApp(mods=[detector_mod("refuse", loss=my_loss, board="/shared/digests")])

It belongs before all other mods. What it saw is logged, kept in the client's own `context.state`
(`alarms`), and never told to the server, except that a client which refuses says why.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, get_args

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from pydantic import Field, ValidationError

from attacks.federated.detect import (
    DEFAULT,
    Finding,
    Limits,
    check_limits,
    differing_models,
    loss_jump,
    model_digest,
    planted_rows,
)
from fl_audit.errors import InputError, UnknownNameError, clean_text
from fl_audit.files import Arrays, read_json, write_text
from fl_audit.results import Record
from strategies.malicious_clients import round_of
from strategies.messages import content_arrays

logger = logging.getLogger("fl_audit")

Action = Literal["warn", "refuse"]
Loss = Callable[[Arrays, Context], float]
"""Mean loss (nats) of a model, by array name, on the client's own records."""

STATE = "fl-audit-detector"  # key of context.state
REFUSED = 6  # Flower's code of a mod whose precondition failed
_MAX_NOTE = 10_000  # bytes: a digest takes 150


class _Note(Record):
    """What one client published about one round."""

    schema_version: Literal[1] = 1
    round: int = Field(ge=1)
    client: int
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def detector_mod(
    action: Action = "warn",
    *,
    board: str | Path | None = None,
    loss: Loss | None = None,
    limits: Limits = DEFAULT,
    on_finding: Callable[[Finding], None] | None = None,
) -> Mod:
    """A mod that checks each model that it is asked to train.

    Args:
        action: "warn": log and train; "refuse": answer with an error that says why, and do not
            train. What is refused does not count as a past loss.
        board: A folder that clients share and the server cannot write to, for digests: a client
            sees what the others published before it, in this round and earlier ones. None: models
            are not compared.
        loss: The model's loss on the client's own records; None: no check for jumps.
        limits: Where an observation becomes a finding.
        on_finding: Called with each finding.

    Raises:
        UnknownNameError: If there is no such action.
        InputError: If the board is no folder, or a limit impossible.
    """
    if action not in get_args(Action):
        raise UnknownNameError("action", action, get_args(Action))
    check_limits(limits)
    shared = None if board is None else _Board(Path(board))

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        server_round = round_of(message)
        if server_round is None or not message.content.array_records:
            return call_next(message, context)
        memory = _Memory(context)
        client = int(context.node_config.get("partition-id", context.node_id))
        arrays = content_arrays(message.content)
        found = planted_rows(arrays, server_round=server_round, client=client, limits=limits)
        now = None
        if loss is not None:
            now = float(loss(arrays, context))
            losses = [*memory.losses, now]
            jump = loss_jump(losses, server_round=server_round, client=client, limits=limits)
            found += [] if jump is None else [jump]
        if shared is not None:
            found += shared.compare(server_round, client, model_digest(arrays))
        for finding in found:
            logger.warning(
                "round %d, client %d: %s: %s", server_round, client, finding.check, finding.what
            )
            if on_finding is not None:
                on_finding(finding)
        refuses = action == "refuse" and bool(found)
        memory.keep(found, None if refuses else now, limits.memory)
        if refuses:
            why = "; ".join(f"{f.check}: {f.what}" for f in found)
            reason = clean_text(f"fl-audit detector refuses to train on this model: {why}")
            return Message(Error(code=REFUSED, reason=reason), reply_to=message)
        return call_next(message, context)

    return mod


def alarms(context: Context) -> list[Finding]:
    """Every finding of this client so far."""
    return _Memory(context).findings


class _Memory:
    """Past losses and findings, in the client's context: it outlives the process."""

    def __init__(self, context: Context) -> None:
        self._state = context.state
        kept = context.state.config_records.get(STATE, ConfigRecord())
        losses, findings = kept.get("losses", []), kept.get("findings", [])
        self.losses = [float(str(x)) for x in losses] if isinstance(losses, list) else []
        texts = [str(x) for x in findings] if isinstance(findings, list) else []
        self.findings = [Finding(**json.loads(text)) for text in texts]

    def keep(self, found: list[Finding], loss: float | None, length: int) -> None:
        """Remember this round."""
        self.findings += found
        self.losses = [*self.losses, *([] if loss is None else [loss])][-length:]
        fields = [
            {"check": f.check, "round": f.round, "client": f.client, "what": f.what,
             "value": f.value}
            for f in self.findings
        ]  # fmt: skip
        self._state.config_records[STATE] = ConfigRecord(
            {"losses": self.losses, "findings": [json.dumps(f) for f in fields]}
        )


class _Board:
    """Digests in a shared folder, one small file a round and client."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(
                "board",
                str(folder),
                "is no folder",
                "Create a folder that all clients, and not the server, can write to.",
            )
        self._folder = folder

    def compare(self, server_round: int, client: int, digest: str) -> list[Finding]:
        """Publish a digest; return what others published that differs from one's own.

        A difference in an earlier round, which this client could not see then, counts too.
        """
        note = _Note(round=server_round, client=client, digest=digest)
        path = self._folder / f"round_{server_round:06d}_client_{client}.json"
        write_text(path, note.model_dump_json())
        path.chmod(0o644)  # a digest says nothing about anybody's data
        findings: list[Finding] = []
        for number in (server_round - 1, server_round):
            digests = self._digests(number)
            if client in digests:
                findings += [
                    f
                    for f in differing_models(digests, server_round=number)
                    if number == server_round or f.client == client
                ]
        return findings

    def _digests(self, server_round: int) -> dict[int, str]:
        """What was published about a round; files that are no digests are passed over."""
        digests = {}
        for path in sorted(self._folder.glob(f"round_{server_round:06d}_client_*.json")):
            try:
                if path.is_symlink() or path.stat().st_size > _MAX_NOTE:
                    continue
                note = _Note.model_validate(read_json(path))
            except (OSError, ValueError, ValidationError):
                logger.warning("board: %s is no digest", clean_text(path.name, 100))
                continue
            if note.round == server_round:
                digests[note.client] = note.digest
        return digests

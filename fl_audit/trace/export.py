"""Arrays of a trace as plain files, for other tools."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array

from fl_audit.errors import InputError, TraceError
from fl_audit.files import Arrays, private_directory, write_arrays, write_bytes
from fl_audit.run_directory import refuse_flower_app, refuse_run_directory
from fl_audit.trace.layout import Party, SentTo, party_name
from fl_audit.trace.reader import Trace
from fl_audit.trace.usable import usable_clients


def export_trace(
    trace: Trace,
    out: Path,
    *,
    rounds: Sequence[int] | None = None,
    clients: Sequence[int] | None = None,
    updates: bool = False,
    npz: bool = True,
) -> int:
    """Write `round_0001_broadcast.npz`, `round_0001_client_3.npz`, ... into a new folder.

    Where client 3 received another model than the broadcast, `round_0001_sent_3.npz` is that one.

    Args:
        rounds: Which rounds; all by default.
        clients: Which clients; all by default.
        updates: Of clients, write client minus received parameters (float64), for replies that
            have the model's arrays; otherwise what they sent.
        npz: numpy's format (never pickled); otherwise safetensors.

    Returns:
        How many files were written.

    Raises:
        TraceError: If the trace does not verify, or a round was not recorded.
        InputError: If `out` is taken or a place for no personal data, or if there is nothing of a
            client in the rounds chosen. Nothing is written then.
    """
    _refuse_place(out)
    chosen = trace.rounds if rounds is None else sorted(set(rounds))
    parties = {number: _parties(trace, number, updates=updates) for number in chosen}
    wanted = _wanted(parties, clients)
    findings = trace.verify()
    if findings:
        raise TraceError(
            "trace",
            findings[0],
            f"{len(findings)} of its files or arrays are not as recorded",
            "Only a whole trace is exported. `fl-audit trace verify` lists all findings.",
        )
    private_directory(out)
    for number, party in wanted:
        arrays: Arrays | None
        if updates and isinstance(party, int):
            kind, arrays = f"update_{party}", _update(trace, number, party)
        else:
            kind, arrays = party_name(party), trace.arrays(number, party)
        _write(out / f"round_{number:04d}_{kind}", arrays or {}, npz=npz)
    return len(wanted)


def _refuse_place(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("out", str(out), "it exists and is not empty", "Choose another folder.")
    refuse_flower_app(out.resolve())
    refuse_run_directory(out.resolve())


def _parties(trace: Trace, number: int, *, updates: bool) -> list[Party]:
    """Whose arrays there are in a round; with `updates`, only clients that have an update."""
    own: list[Party] = [SentTo(entry.client) for entry in trace.round(number).sent]
    models: list[Party] = ["broadcast", "aggregate", *own]
    replies: list[Party] = [
        client
        for client, why in usable_clients(trace.round(number)).items()  # raises for no such round
        if why is None or not updates
    ]
    if updates and trace.arrays(number, "broadcast") is None:
        replies = []  # nothing to subtract
    return [p for p in [*models, *replies] if trace.arrays(number, p) is not None]


def _wanted(
    parties: dict[int, list[Party]], clients: Sequence[int] | None
) -> list[tuple[int, Party]]:
    """Models, and clients if they were asked for; each of these must have something to export."""
    found = {p for there in parties.values() for p in there}
    for client in clients or ():
        if client not in found:
            raise InputError(
                "client",
                client,
                "nothing of this client can be exported from these rounds",
                f"Clients that can: {sorted(p for p in found if isinstance(p, int))}. "
                "`fl-audit trace info` shows what was kept.",
            )
    if not found:
        raise InputError(
            "rounds",
            list(parties),
            "no arrays were recorded of these",
            "Choose others: `fl-audit trace info` shows what was kept.",
        )
    return [
        (number, party)
        for number, there in parties.items()
        for party in there
        if isinstance(party, str)
        or clients is None
        or (party.client if isinstance(party, SentTo) else party) in clients
    ]


def _update(trace: Trace, number: int, client: int) -> Arrays:
    """Client minus received parameters."""
    before: Arrays = trace.received(number, client) or {}
    after: Arrays = trace.arrays(number, client) or {}
    return {
        name: after[name].astype(np.float64) - before[name].astype(np.float64)
        for name in before
        if np.issubdtype(before[name].dtype, np.floating)
    }


def _write(stem: Path, arrays: Arrays, *, npz: bool) -> None:
    if not npz:
        write_arrays(stem.with_name(f"{stem.name}.safetensors"), arrays)
        return
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # np.savez would pickle what is no number
        for name, array in arrays.items():
            # "/" in a name would be a folder inside the archive
            with archive.open(f"{name.replace('/', '|')}.npy", "w", force_zip64=True) as member:
                write_array(member, np.asarray(array), allow_pickle=False)
    write_bytes(stem.with_name(f"{stem.name}.npz"), buffer.getvalue())

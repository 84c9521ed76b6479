"""Arrays of a trace as plain files, for other tools."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array

from fl_audit.errors import InputError, TraceError
from fl_audit.files import Arrays, private_directory, write_arrays, write_bytes
from fl_audit.trace.reader import Trace
from fl_audit.trace.view import usable_clients


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

    Args:
        rounds: Which rounds; all by default.
        clients: Which clients; all by default.
        updates: Of clients, write client minus global parameters (float64), for replies that have
            the model's arrays; otherwise what they sent.
        npz: numpy's format (never pickled); otherwise safetensors.

    Returns:
        How many files were written.

    Raises:
        TraceError: If the trace does not verify; nothing is written then.
        InputError: If `out` is taken, a round was not recorded, or nothing is chosen.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("out", str(out), "it exists and is not empty", "Choose another folder.")
    chosen = list(trace.rounds if rounds is None else rounds)
    for number in chosen:
        trace.round(number)  # raises for a round that is not there
    findings = trace.verify()
    if findings:
        raise TraceError(
            "trace",
            findings[0],
            f"{len(findings)} of its files or arrays are not as recorded",
            "Only a whole trace is exported. `fl-audit trace verify` lists all findings.",
        )
    private_directory(out)
    written = sum(_export_round(trace, n, out, clients, updates=updates, npz=npz) for n in chosen)
    if written == 0:
        raise InputError(
            "rounds, clients",
            (rounds, clients),
            "no arrays were recorded of these",
            "Choose others: `fl-audit trace info` shows what was kept.",
        )
    return written


def _export_round(
    trace: Trace,
    number: int,
    out: Path,
    clients: Collection[int] | None,
    *,
    updates: bool,
    npz: bool,
) -> int:
    parties: dict[str, Arrays] = {}
    broadcast, aggregate = trace.arrays(number, "broadcast"), trace.arrays(number, "aggregate")
    if broadcast is not None:
        parties["broadcast"] = broadcast
    if aggregate is not None:
        parties["aggregate"] = aggregate
    for client, why in usable_clients(trace.round(number)).items():
        reply = trace.arrays(number, client)
        if reply is None or (clients is not None and client not in clients):
            continue
        if not updates:
            parties[f"client_{client}"] = reply
        elif why is None and broadcast is not None:
            parties[f"update_{client}"] = {
                name: reply[name].astype(np.float64) - broadcast[name].astype(np.float64)
                for name in broadcast
                if np.issubdtype(broadcast[name].dtype, np.floating)
            }
    for party, arrays in parties.items():
        _write(out / f"round_{number:04d}_{party}", arrays, npz=npz)
    return len(parties)


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

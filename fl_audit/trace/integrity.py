"""What a trace's folder must hold: the indices that were written, and no file beside theirs."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from fl_audit.errors import clean_text
from fl_audit.files import sha256_file
from fl_audit.trace.digests import read_digests
from fl_audit.trace.index import ArraysEntry, RoundIndex
from fl_audit.trace.layout import (
    DIGESTS,
    INDEX,
    Party,
    SentTo,
    arrays_file,
    index_file,
    round_directory,
)

_OURS = re.compile(
    r"(round\.json|(broadcast|aggregate|(client|sent)_[0-9]+)\.safetensors)(\.part)?"
)


def check_indices(trace: Path, indices: Sequence[RoundIndex]) -> list[str]:
    """Compare each round.json with its digest; one line a finding.

    The last round has none yet if the process died in the middle of it.
    """
    sealed = [i for i in indices if i is not indices[-1] or i.state == "aggregated"]
    try:
        digests = read_digests(trace)
    except FileNotFoundError:
        why = f"{DIGESTS}: there is none, so no {INDEX} can be verified (an older fl-audit?)"
        return [why] if sealed else []
    except (OSError, ValueError) as error:
        return [
            f"{DIGESTS}: it is damaged, so no {INDEX} can be verified ({clean_text(error, 200)})"
        ]
    findings = []
    for index in indices:
        name = f"{round_directory(trace, index.round).name}/{INDEX}"
        if index.round not in digests:
            if index in sealed:
                findings.append(f"{name}: no digest was recorded, so it cannot be verified")
        elif sha256_file(index_file(trace, index.round)) not in digests[index.round]:
            findings.append(f"{name}: its sha256 differs from {DIGESTS}")
    standing = {path.name for path in trace.iterdir()}
    missing = [n for n in digests if round_directory(trace, n).name not in standing]
    return findings + [f"round {n}: {DIGESTS} knows it, and it is not there" for n in missing]


def find_strays(
    trace: Path, indices: Sequence[RoundIndex], unfinished: Collection[int] = ()
) -> list[str]:
    """Files and folders that no index speaks of; one line each.

    Args:
        unfinished: Rounds whose recording failed: files of theirs may be missing in the index. The
            last round is among them unless it was aggregated: the process may have died.
    """
    open_rounds = {*unfinished, *(i.round for i in indices[-1:] if i.state != "aggregated")}
    expected = {trace / DIGESTS} | {path for index in indices for path in _files(trace, index)}
    folders = {round_directory(trace, index.round): index.round for index in indices}
    findings = []
    for entry in sorted(trace.iterdir()):
        inside = sorted(entry.iterdir()) if entry in folders and entry.is_dir() else []
        known = entry in expected or entry in folders or _is_headless(entry)
        strays = [] if known else [entry]
        if folders.get(entry) in open_rounds:
            inside = [path for path in inside if not _OURS.fullmatch(path.name)]
        strays += [path for path in inside if path not in expected]
        findings += [
            f"{clean_text(path.relative_to(trace))}: it is not part of the trace" for path in strays
        ]
    return findings


def _is_headless(entry: Path) -> bool:
    """A round without an index is another finding."""
    is_round = re.fullmatch(r"round_[0-9]{4,9}", entry.name) is not None
    return is_round and entry.is_dir() and not (entry / INDEX).exists()


def _files(trace: Path, index: RoundIndex) -> list[Path]:
    """Files that a round's index speaks of."""
    files = [index_file(trace, index.round)]
    parties: dict[Party, ArraysEntry | None] = {
        "broadcast": index.broadcast,
        "aggregate": index.aggregate,
        **{SentTo(s.client): s.arrays for s in index.sent if s.same_as_client is None},
        **{reply.client: reply.arrays for reply in index.replies},
    }
    for party, entry in parties.items():
        if entry is not None and entry.is_stored and entry.same_as_aggregate is None:
            files.append(arrays_file(trace, index.round, party))
    return files

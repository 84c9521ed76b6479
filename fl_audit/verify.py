"""Whether a recorded run is whole: its trace, and what run.json says about it."""

from __future__ import annotations

from collections.abc import Collection

from fl_audit.errors import RunDirectoryError, clean_text
from fl_audit.run_directory import RunDirectory, RunManifest
from fl_audit.trace import Trace
from fl_audit.trace.digests import digest_of_digests

RECORDING = "recording"
"""Where a problem stands that cost a round, or a part of it."""


def verify_run(run: RunDirectory) -> list[str]:
    """Check every file of a trace, and its rounds against run.json; one line a finding.

    A round that run.json has a recording problem about may be incomplete.

    Raises:
        TraceError: If an index cannot be read at all.
    """
    trace = run.open_trace()
    try:
        manifest = run.read_manifest()
    except RunDirectoryError as error:  # the trace beside it is worth a look all the same
        return [clean_text(error), *trace.verify()]
    excused = excused_rounds(manifest)
    findings = _compare_rounds(manifest, trace, excused)
    found, told = digest_of_digests(trace.directory), manifest.trace_digest
    if found is not None and told is None and manifest.state == "done":
        findings.append("run.json: it has no digest of trace/digests.json, which is not verified")
    elif told not in (None, found):
        findings.append("trace/digests.json: its sha256 differs from run.json")
    return findings + trace.verify(unfinished=excused)


def excused_rounds(manifest: RunManifest) -> set[int]:
    """Rounds whose recording failed, as run.json says."""
    problems = [p for p in manifest.problems if p.where == RECORDING]
    return {p.round for p in problems if p.round is not None}


def missing_last_rounds(
    manifest: RunManifest, trace: Trace, *, up_to: int | None = None
) -> list[int]:
    """Rounds at the end of a finished run that the trace lacks, or has in part only.

    Without them, the last model that is there is not the final one.
    """
    if manifest.state != "done" or manifest.planned_rounds is None:
        return []
    last = manifest.planned_rounds if up_to is None else min(up_to, manifest.planned_rounds)
    done = [n for n in trace.rounds if trace.round(n).state == "aggregated"]
    return list(range(max(done, default=0) + 1, last + 1))


def _compare_rounds(manifest: RunManifest, trace: Trace, excused: Collection[int]) -> list[str]:
    is_done = manifest.state == "done"
    recorded = trace.rounds
    last = max(recorded, default=0)
    expected = (manifest.planned_rounds or last) if is_done else last
    findings = [
        f"round {number}: it is missing; run.json is about {expected} rounds, {manifest.state}"
        for number in range(1, expected + 1)
        if number not in recorded and number not in excused
    ]
    for number in recorded:
        state = trace.round(number).state
        ended = is_done or number != last
        if ended and state != "aggregated" and number not in excused:
            findings.append(f"round {number}: its index says {state!r}, though the round ended")
    if manifest.planned_rounds is not None and last > manifest.planned_rounds:
        findings.append(f"round {last}: run.json planned {manifest.planned_rounds} rounds")
    return findings

"""Which replies of a round an attack can use, and why the others not."""

from __future__ import annotations

from fl_audit.trace.index import ArraysEntry, RoundIndex

LEFT_OUT = "the recording policy did not keep what it sent"
MODEL_LEFT_OUT = "the model that it received was not kept"


def usable_clients(index: RoundIndex) -> dict[int, str | None]:
    """Each client that replied, with why its reply cannot be used (None: it can)."""
    model = _entry_shapes(index.broadcast)
    own = {entry.client: entry.arrays for entry in index.sent}
    usable: dict[int, str | None] = {}
    for reply in sorted(index.replies, key=lambda r: r.client):
        why = None
        if reply.error_code is not None:
            why = f"the client failed ({reply.error_reason or f'code {reply.error_code}'})"
        elif reply.was_left_out:
            why = LEFT_OUT
        elif reply.arrays is None:
            why = "it sent no arrays"
        elif _entry_shapes(reply.arrays) != model:
            why = "its arrays do not have the model's names and shapes"
        elif not reply.is_finite:
            why = "its arrays hold NaN or infinite values"
        elif reply.client in own and _entry_shapes(own[reply.client]) != model:
            why = "it received a model with other names or shapes than the global one"
        elif reply.client in own and not own[reply.client].is_stored:
            why = MODEL_LEFT_OUT
        usable[reply.client] = why
    return usable


def _entry_shapes(entry: ArraysEntry | None) -> dict[str, list[int]]:
    return {} if entry is None else {name: t.shape for name, t in entry.tensors.items()}

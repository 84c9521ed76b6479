"""The index of a trace: one small JSON file a round, beside the arrays it vouches for.

    trace/digests.json                     a sha256 of each round.json
    trace/round_0001/round.json            this file's models
    trace/round_0001/broadcast.safetensors the global model that clients received
    trace/round_0001/sent_3.safetensors    what client 3 received in its place (malicious servers)
    trace/round_0001/client_3.safetensors  what client 3 replied, as it arrived
    trace/round_0001/aggregate.safetensors what the strategy made of the replies

File names follow from (round, party) and are never read from the index, so that an index cannot
point outside its directory.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from fl_audit.errors import clean_text
from fl_audit.results import Record, Text

SCHEMA_VERSION = 1
Metric = float | int | Text | list[float | int | Text]


class TensorEntry(Record):
    """What an array must look like when it is read."""

    dtype: str
    shape: list[int]
    sha256: str | None = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="of the bytes in C order; None if the process died before it was computed",
    )


class ArraysEntry(Record):
    """One safetensors file, a reference to another round's file, or digests only."""

    tensors: dict[str, TensorEntry]
    file_sha256: str | None = Field(description="None if there is no file, or no digest yet")
    same_as_aggregate: int | None = Field(
        default=None, ge=1, description="Round whose aggregate is this broadcast, stored once"
    )
    is_stored: bool = Field(default=True, description="False: only digests were kept")


class ReplyEntry(Record):
    """What one client answered."""

    client: int = Field(ge=0)
    arrays: ArraysEntry | None = Field(description="None if the client sent none that can be read")
    num_examples: Metric | None = Field(description="As claimed by the client, whatever it is")
    metrics: dict[Text, Metric]
    is_finite: bool | None = Field(
        description="Every array holds finite numbers only; None if the arrays were not kept"
    )
    was_left_out: bool = Field(
        default=False,
        description="Arrays came, and were not kept: recording policy, cap or a full disk",
    )
    error_code: int | None = None
    error_reason: Text | None = None


class SentEntry(Record):
    """What one client received where it is not the round's global model."""

    client: int = Field(ge=0)
    arrays: ArraysEntry
    same_as_client: int | None = Field(
        default=None, ge=0, description="Client that received the same arrays, stored once"
    )


class RoundIndex(Record):
    """One round, as far as it got."""

    schema_version: Literal[1] = 1
    round: int = Field(ge=1)
    state: Literal["sent", "replied", "aggregated"]
    sampled: list[int] = Field(description="Clients that were sent the model")
    broadcast: ArraysEntry | None = Field(description="None if the policy keeps no models")
    sent: list[SentEntry] = Field(
        default_factory=list,
        description="Clients that received another model than the broadcast, as a malicious "
        "server may send; of all others, the broadcast is what they received",
    )
    replies: list[ReplyEntry] = Field(default_factory=list)
    aggregate: ArraysEntry | None = None
    metrics: dict[Text, Metric] = Field(default_factory=dict, description="As aggregated")

    @model_validator(mode="after")
    def _one_reply_a_client(self) -> RoundIndex:
        if len({reply.client for reply in self.replies}) < len(self.replies):
            raise ValueError("a client stands there twice")
        return self

    @model_validator(mode="after")
    def _sent_models_are_known(self) -> RoundIndex:
        owners = {entry.client: entry for entry in self.sent}
        if len(owners) < len(self.sent):
            raise ValueError("a client was sent two models")
        for entry in self.sent:
            if entry.arrays.same_as_aggregate is not None:
                raise ValueError("a model of one client stands in no aggregate")
            if entry.same_as_client is None:
                continue
            owner = owners.get(entry.same_as_client)
            if owner is None or owner.same_as_client is not None:
                raise ValueError("a model refers to one that is not there")
            if owner.arrays.tensors != entry.arrays.tensors:
                raise ValueError("a model refers to another one")
        return self

    def reply(self, client: int) -> ReplyEntry | None:
        """The reply of one client, if there is one."""
        return next((r for r in self.replies if r.client == client), None)

    def sent_to(self, client: int) -> SentEntry | None:
        """What a client received, if it is not the broadcast."""
        return next((s for s in self.sent if s.client == client), None)


def plain_metric(value: object) -> Metric:
    """A metric as JSON can hold it: NaN and infinities become the words "nan", "inf", "-inf"."""
    if isinstance(value, list):
        return [_plain_number(item) for item in value]
    return _plain_number(value)


def digest(rounds: list[RoundIndex]) -> str:
    """sha256 over arrays, counts, errors and (round, client) keys of a trace.

    Models of single clients count where there are any, so that an honest run has one digest
    whether or not they could be recorded. It does not cover node ids, message ids, metrics (a
    client may send timings), error texts, times or versions, so that two runs with one seed have
    one digest.
    """
    content = [
        {
            "round": r.round,
            "sampled": sorted(r.sampled),
            "broadcast": _tensors(r.broadcast),
            "replies": [
                [q.client, _tensors(q.arrays), q.num_examples, q.error_code]
                for q in sorted(r.replies, key=lambda q: q.client)
            ],
            "aggregate": _tensors(r.aggregate),
            **({"sent": _sent(r)} if r.sent else {}),
        }
        for r in rounds
    ]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _sent(index: RoundIndex) -> list[list[object]]:
    ordered = sorted(index.sent, key=lambda s: s.client)
    return [[s.client, _tensors(s.arrays)] for s in ordered]


def _tensors(entry: ArraysEntry | None) -> list[list[object]] | None:
    if entry is None:
        return None
    return [[name, t.dtype, t.shape, t.sha256] for name, t in sorted(entry.tensors.items())]


def _plain_number(value: object) -> float | int | str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

"""Traces: what was seen of a federation, on disk; and views: what an attack may see of it."""

from fl_audit.trace.index import ArraysEntry, ReplyEntry, RoundIndex, TensorEntry
from fl_audit.trace.policy import RecordingPolicy
from fl_audit.trace.reader import Trace
from fl_audit.trace.reply import Reply
from fl_audit.trace.view import TraceView
from fl_audit.trace.writer import TraceWriter

__all__ = [
    "ArraysEntry",
    "RecordingPolicy",
    "Reply",
    "ReplyEntry",
    "RoundIndex",
    "TensorEntry",
    "Trace",
    "TraceView",
    "TraceWriter",
]

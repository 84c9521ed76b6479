"""What an attack's adversary has of the model: results are grouped by it, the least first."""

from __future__ import annotations

from fl_audit.errors import AuditError
from fl_audit.results import AnyAttackRecord, MembershipRecord
from fl_audit.threat_model import Observation, parse_observations

LEVELS = ("labels", "confidences", "white box", "updates", "other")
_BY_OBSERVATION = (
    (Observation.CLIENT_UPDATES | Observation.AGGREGATE | Observation.GLOBAL_MODEL, "updates"),
    (Observation.FINAL_MODEL, "white box"),
    (Observation.LOGITS, "confidences"),
    (Observation.LABELS_ONLY, "labels"),
)


def access_of_record(record: AnyAttackRecord) -> str:
    """One of `LEVELS`: as recorded, else from what the attack saw."""
    if isinstance(record, MembershipRecord) and record.details is not None:
        return record.details.access
    try:
        seen = parse_observations(record.requires)
    except AuditError:  # flags of another version
        return "other"
    return next((level for flags, level in _BY_OBSERVATION if seen & flags), "other")

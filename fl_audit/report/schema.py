"""The published JSON Schema of report.json. `python -m fl_audit.report.schema` writes it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fl_audit.report.model import AuditReport

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def report_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a report as it is written."""
    schema = AuditReport.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(report_schema(), indent=1) + "\n", encoding="utf-8")

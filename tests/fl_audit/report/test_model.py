"""report.json: published schema, damaged files, newer versions."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from fl_audit.errors import AuditError
from fl_audit.report.model import load_report
from fl_audit.report.schema import SCHEMA_FILE, report_schema


def test_the_published_schema_is_that_of_the_code() -> None:
    """If this fails, run `python -m fl_audit.report.schema` and raise schema_version if needed."""
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == report_schema()


def test_a_real_report_follows_the_published_schema(digits_run: Path) -> None:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    report = json.loads((digits_run / "report.json").read_text(encoding="utf-8"))
    jsonschema.validate(report, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**report, "surprise": 1}, schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "missing or damaged"),
        ("{", "missing or damaged"),
        ("[]", "missing or damaged"),
        ('{"schema_version": 2}', "Upgrade fl-audit"),
    ],
)
def test_unreadable_reports_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AuditError, match=message):
        load_report(path)

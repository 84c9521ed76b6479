"""The example attack of CONTRIBUTING.md works as it stands there."""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path

import pytest

from attacks.audit import audit_run
from attacks.requests import AttackRequest
from fl_audit.results import MembershipResult

HOME = Path(__file__).parent.parent


def test_the_example_attack_runs_and_finds_members(
    memorising_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (HOME / "CONTRIBUTING.md").read_text(encoding="utf-8")
    match = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert match is not None
    module = types.ModuleType("example_attack")
    monkeypatch.setitem(
        sys.modules, "example_attack", module
    )  # pydantic looks annotations up there
    exec(compile(textwrap.dedent(match[1]), "CONTRIBUTING.md", "exec"), module.__dict__)
    spec = module.ATTACK
    request = AttackRequest(spec.name, spec, spec.settings())
    (result,) = audit_run(memorising_run, attacks=[request], folder="example")
    assert isinstance(result, MembershipResult), result.record
    assert result.record.result is not None
    assert result.record.result.metrics["auc"].low > 0.5

"""The README's scenario is accepted as it stands there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from attacks.requests import check_attacks, parse_attacks
from simulations.defences import build_strategy
from simulations.scenario import parse_scenario

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_scenario_of_the_readme_is_accepted() -> None:
    match = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert match is not None
    scenario = parse_scenario(tomllib.loads(match[1]))
    check_attacks(parse_attacks(scenario.audit.attacks), scenario.threat_model.model())
    build_strategy(scenario.strategy, scenario.defence, scenario.federation)


def test_the_two_commands_stand_at_the_top() -> None:
    head = TEXT.split("\n\n")[1]
    assert "make demo" in head
    assert "make test" in head

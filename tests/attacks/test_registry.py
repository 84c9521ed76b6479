"""The registry lists every attack there is, and each says what it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import attacks
from attacks.registry import ATTACKS, known_attacks, load_attack
from fl_audit.attack_spec import AttackSettings
from fl_audit.errors import UnknownNameError

HOME = Path(attacks.__file__).parent
_NAMES = ("ATTACK", "LOCAL_ATTACK")


def test_every_attack_that_a_module_defines_is_listed() -> None:
    """ATTACK and LOCAL_ATTACK, alone or unpacked from a pair."""
    defined = set()
    for path in HOME.rglob("*.py"):
        module = ".".join(path.relative_to(HOME.parent).with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            for target in node.targets if isinstance(node, ast.Assign) else []:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                names = [part.id for part in parts if isinstance(part, ast.Name)]
                defined |= {f"{module}:{name}" for name in names if name in _NAMES}
    assert defined == set(ATTACKS.values())


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_says_what_it_is(name: str) -> None:
    spec = load_attack(name)
    assert spec.name == name
    assert spec.reference.startswith("https://")
    assert spec.requires, "an attack that sees nothing attacks nothing"
    assert spec.summary
    assert issubclass(spec.settings, AttackSettings)
    spec.settings()  # every setting has a default


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_has_a_test_file(name: str) -> None:
    module = ATTACKS[name].partition(":")[0].split(".")
    folder = Path(__file__).parent.joinpath(*module[1:-1])
    assert (folder / f"test_{module[-1]}.py").is_file()


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown attack 'row_spce'. Did you mean"):
        load_attack("row_spce")


def test_third_parties_cannot_replace_ours() -> None:
    assert {name: known_attacks()[name] for name in ATTACKS} == ATTACKS

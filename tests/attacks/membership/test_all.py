"""Every registered attack on a model: at chance on records never trained on, above it on members.

One test over the registry on shared targets, so that a new attack cannot skip it. It catches
reversed signs. False-failure rate of the file over fresh seeds: at most 1e-6.
"""

from __future__ import annotations

from typing import Any

import pytest

from attacks.registry import ATTACKS, load_attack
from fl_audit.stats import auc_ci

FALSE_FAILURE = 1e-6
LEVEL = FALSE_FAILURE / len(ATTACKS)
FALSE_PASS = 1e-6
ON_MODEL = [name for name in sorted(ATTACKS) if load_attack(name).is_on_model]
FAST: dict[str, dict[str, Any]] = {}  # settings that save time and not power


@pytest.mark.parametrize("name", ON_MODEL)
def test_records_never_trained_on_look_alike(name: str, memorised: Any) -> None:
    is_member, output = memorised.run(load_attack(name), "null", **FAST.get(name, {}))
    estimate = auc_ci(is_member, output.scores, confidence=1 - LEVEL)
    assert estimate.low <= 0.5 <= estimate.high


@pytest.mark.parametrize("name", ON_MODEL)
def test_members_of_a_memorised_set_stand_out(name: str, memorised: Any) -> None:
    is_member, output = memorised.run(load_attack(name), **FAST.get(name, {}))
    # an attack without any power passes with this probability, however many attacks there are
    estimate = auc_ci(is_member, output.scores, confidence=1 - FALSE_PASS)
    assert estimate.low > 0.5

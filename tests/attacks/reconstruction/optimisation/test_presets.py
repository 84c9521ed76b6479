"""Recipes by name; settings that contradict each other are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from attacks.reconstruction.inversion_settings import preset_settings
from attacks.reconstruction.optimisation.config import InversionConfig
from attacks.reconstruction.optimisation.presets import PRESETS, preset
from fl_audit.errors import InputError, UnknownNameError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_config_and_needs_no_labels(name: str) -> None:
    """A preset that assumes known labels would flatter the attack."""
    assert preset(name).labels in ("inferred", "joint")


def test_presets_do_what_their_papers_do() -> None:
    dlg, ig, huang = preset("dlg"), preset("inverting_gradients"), preset("huang")
    assert (dlg.objective, dlg.optimiser, dlg.labels) == ("euclidean", "lbfgs", "joint")
    assert preset("idlg").labels == "inferred"
    assert (ig.objective, ig.signed, ig.learning_rate) == ("cosine", "hard", 0.1)
    assert (huang.batch_norm, huang.statistics) == (0.00016, "running")
    assert huang.total_variation > ig.total_variation > 0
    assert preset("second_order").refine > 0


def test_fields_are_replaced_and_checked() -> None:
    assert preset("dlg", iterations=3) == InversionConfig(**{**PRESETS["dlg"], "iterations": 3})
    with pytest.raises(UnknownNameError, match="Did you mean 'huang'"):
        preset("hunag")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"iteration": 3}, "preset 'dlg', iteration = 3: unknown setting. Did you mean 'iter"),
        ({"iterations": -5}, "preset 'dlg', iterations = -5: should be greater than or equal to 1"),
        ({"optimiser": "sgd"}, "preset 'dlg', optimiser = 'sgd': should be 'auto', 'adam' or"),
        ({"batch_norm": 0.1}, "preset 'dlg' = .*: batch_norm needs statistics"),
    ],
)
def test_what_a_preset_cannot_take_is_told_in_our_words(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        preset("dlg", **fields)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_bounds_of_settings_hold_for_the_attacks_too(name: str) -> None:
    """Their classes have other defaults, and the same bounds."""
    kind = preset_settings(name, most_updates=5)
    plain = kind()
    assert plain.config() == preset(name)
    assert plain.most_updates == 5
    for wrong in ({"iterations": -5}, {"refine": -1}, {"most_updates": 0}, {"restarts": 0}):
        with pytest.raises(ValidationError, match="greater than"):
            kind.model_validate(wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bounds": (1.0, 0.0)}, "must rise"),
        ({"bounds": ([0.0, 0.0], [1.0, 0.0])}, "must rise"),
        ({"batch_norm": 0.1}, "needs statistics"),
        ({"group_consistency": 0.1}, "restarts >= 2"),
        ({"group_consistency": 0.1, "restarts": 2, "optimiser": "lbfgs"}, "needs Adam"),
        ({"objective": "sign", "refine": 1}, "refine = 0"),
        ({"iterations": 0}, "greater than"),
        ({"refine_evaluations": 0}, "greater than"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"objective": "l3"}, "objective"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        InversionConfig.model_validate(fields)

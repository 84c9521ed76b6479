"""Threat models: what implies what, what is missing, and names as scenario files spell them."""

from __future__ import annotations

from itertools import product

import pytest

from fl_audit.errors import ObservationError, UnknownNameError
from fl_audit.threat_model import (
    NOTHING_KNOWN,
    NOTHING_SEEN,
    PRESETS,
    Knowledge,
    Observation,
    ThreatModel,
    flag_names,
    parse_knowledge,
    parse_observations,
    threat_model,
)

O, K = Observation, Knowledge  # noqa: E741
# written out by hand, transitively: the oracle of `IMPLIES`
SEES_TOO = {
    O.CLIENT_UPDATES: O.CLIENT_UPDATES | O.AGGREGATE,
    O.AGGREGATE: O.AGGREGATE,
    O.GLOBAL_MODEL: O.GLOBAL_MODEL | O.FINAL_MODEL | O.LOGITS | O.LABELS_ONLY,
    O.FINAL_MODEL: O.FINAL_MODEL | O.LOGITS | O.LABELS_ONLY,
    O.LOGITS: O.LOGITS | O.LABELS_ONLY,
    O.LABELS_ONLY: O.LABELS_ONLY,
    O.SYNTHETIC_TABLE: O.SYNTHETIC_TABLE,
}


def test_every_set_of_sights_implies_what_the_table_says() -> None:
    for chosen in product([False, True], repeat=len(O)):
        sees, expected = NOTHING_SEEN, NOTHING_SEEN
        for flag, is_set in zip(O, chosen, strict=True):
            if is_set:
                sees |= flag
                expected |= SEES_TOO[flag]
        missing = ThreatModel("server", sees=sees).missing(~NOTHING_SEEN)
        assert missing == ~expected, flag_names(sees)


def test_every_missing_flag_is_named() -> None:
    model = ThreatModel("observer", sees=O.LOGITS, knows=K.LABELS)
    with pytest.raises(ObservationError) as caught:
        model.require("attack 'x'", O.AGGREGATE | O.LABELS_ONLY, K.LABELS | K.BUFFERS)
    message = str(caught.value)
    assert message.startswith("attack 'x' = 'needs aggregate + buffers'")
    assert "(observer, honest-but-curious) does not grant aggregate, buffers" in message
    assert "Add 'aggregate' to threat_model.sees and 'buffers' to threat_model.knows" in message
    assert "labels-only" not in message  # implied by logits


@pytest.mark.parametrize(
    ("sees", "preset"), [(O.CLIENT_UPDATES, "malicious-server"), (O.AGGREGATE, "malicious-client")]
)
def test_the_malicious_preset_that_is_named_fits(sees: Observation, preset: str) -> None:
    with pytest.raises(ObservationError, match=f'threat_model.preset = "{preset}"'):
        PRESETS["curious-server"].require("x", sees | O.GLOBAL_MODEL, activity="malicious")


def test_what_is_granted_passes() -> None:
    for model in PRESETS.values():
        model.require("x", model.sees, model.knows)
        model.require("x", NOTHING_SEEN, NOTHING_KNOWN)


def test_names_come_back() -> None:
    for flag in O:
        assert parse_observations(flag_names(flag)) == flag
    for known in K:
        assert parse_knowledge(flag_names(known)) == known
    assert parse_observations(flag_names(~NOTHING_SEEN)) == ~NOTHING_SEEN
    assert flag_names(O.CLIENT_UPDATES | O.LABELS_ONLY) == ["client-updates", "labels-only"]
    assert flag_names(NOTHING_SEEN) == []


@pytest.mark.parametrize("name", ["logit", "", "0", "name", "__members__", "client updates"])
def test_an_unknown_flag_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="client-updates, final-model"):
        parse_observations([name])
    with pytest.raises(UnknownNameError, match="auxiliary-data, buffers"):
        parse_knowledge([name])


def test_a_misspelt_flag_gets_a_guess() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'logits'"):
        parse_observations(["logit"])


def test_a_preset_can_be_changed_in_part() -> None:
    model = threat_model("model-user", sees=["labels-only"])
    assert model == ThreatModel("observer", sees=O.LABELS_ONLY, knows=K.LABELS | K.AUXILIARY_DATA)
    assert threat_model("model-user", knows=[]).knows == NOTHING_KNOWN
    assert threat_model("model-user", sees=[]).sees == NOTHING_SEEN
    assert threat_model("curious-server") == PRESETS["curious-server"]


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'curious-server'"):
        threat_model("curious-sever")


def test_secure_aggregation_hides_exactly_the_single_updates() -> None:
    hidden = PRESETS["secure-aggregation-server"].missing(PRESETS["curious-server"].sees)
    assert hidden == O.CLIENT_UPDATES

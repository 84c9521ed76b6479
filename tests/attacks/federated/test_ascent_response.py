"""Ascent response: a closed form, other models for other clients, and who may run it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attacks.federated.ascent_response import ATTACK, ascent_response_scores
from attacks.federated.gradients import per_example_gradients
from attacks.federated.rounds import record_losses
from attacks.registry import load_attack
from attacks.requests import check_attacks, parse_attacks
from fl_audit.attack_spec import AttackInput, MembershipScores
from fl_audit.errors import InputError, ObservationError
from fl_audit.factories import ModelSpec
from fl_audit.files import Arrays
from fl_audit.records import Records
from fl_audit.threat_model import PRESETS
from fl_audit.trace import Reply, Trace, TraceView, TraceWriter

SEED = 20_261_125
SPEC = ModelSpec(
    factory="simulations.models:mlp",
    settings={"input_shape": [6], "num_classes": 3, "hidden": [5]},
)


def weights(rng: np.random.Generator) -> Arrays:
    state = SPEC.builder(trusted=False)().state_dict()
    return {k: rng.normal(0, 0.5, tuple(v.shape)).astype(np.float32) for k, v in state.items()}


def records(n: int, rng: np.random.Generator) -> Records:
    inputs = rng.random((n, 6)).astype(np.float32)
    return Records(np.arange(n), inputs, rng.integers(3, size=n))


def view(folder: Path, model: Arrays, sent: dict[int, Arrays], replies: list[Arrays]) -> TraceView:
    writer = TraceWriter(folder)
    writer.begin_round(1, model, list(range(len(replies))), sent)
    writer.add_replies(1, [Reply(i, arrays) for i, arrays in enumerate(replies)])
    writer.close()
    builder = SPEC.builder(trusted=False)
    return TraceView(Trace.open(folder), PRESETS["malicious-server"], model=builder)


def test_score_is_the_drop_from_what_each_client_received(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    model, own, back, data = weights(rng), weights(rng), weights(rng), records(5, rng)
    seen = view(tmp_path / "trace", model, {1: own}, [back, back])
    loss = {id(m): record_losses(seen.architecture(), m, data) for m in (model, own, back)}
    for client, received in ((0, model), (1, own)):
        asked = np.full(5, client)
        scores = ascent_response_scores(seen, data, asked=asked)
        np.testing.assert_allclose(scores, loss[id(received)] - loss[id(back)])


@pytest.mark.parametrize("is_honest", [True, False])
def test_a_trace_without_any_ascent_is_said_to_be_one(tmp_path: Path, is_honest: bool) -> None:
    rng = np.random.default_rng(SEED)
    model, own, data = weights(rng), weights(rng), records(5, rng)
    sent = {0: model} if is_honest else {1: own}
    given = AttackInput(
        view=view(tmp_path / "trace", model, sent, [weights(rng), weights(rng)]),
        settings=ATTACK.settings(),
        rng=rng,
        candidates=data,
    )
    output = ATTACK.run(given)
    assert isinstance(output, MembershipScores)
    said = any("No client received another model" in note for note in output.notes)
    assert said == is_honest


def test_a_small_step_on_a_record_scores_rate_times_its_squared_gradient(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    model, data = weights(rng), records(5, rng)
    ((_, gradients),) = per_example_gradients(SPEC.builder(trusted=False)(), model, data)
    back = {k: (model[k] - 0.01 * gradients[k][2].numpy()).astype(np.float32) for k in model}
    scores = ascent_response_scores(view(tmp_path / "trace", model, {}, [back]), data)
    square = sum(float(g[2].square().sum()) for g in gradients.values())
    assert scores[2] == pytest.approx(0.01 * square, rel=0.05)


def test_an_honest_server_cannot_run_it() -> None:
    with pytest.raises(ObservationError, match="malicious"):
        check_attacks(parse_attacks("ascent_response"), PRESETS["curious-server"])
    assert load_attack("ascent_response").activity == "malicious"


def test_no_reply_is_no_signal(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    seen = view(tmp_path / "trace", weights(rng), {}, [])
    with pytest.raises(InputError, match="no signal"):
        ascent_response_scores(seen, records(3, rng))

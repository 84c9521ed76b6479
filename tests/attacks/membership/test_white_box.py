"""The white-box attack on whole targets: chance on the null, above it where there is memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from attacks.membership.loss_threshold import loss_scores
from attacks.membership.white_box import ATTACK, white_box_scores
from attacks.membership.white_box_features import Features
from attacks.shadows.lab import Lab
from attacks.shadows.target import Target, Task, callable_target, module_target
from attacks.shadows.training import Job, TrainingConfig, fresh_builder, train_one
from attacks.shadows.workshop import Workshop
from fl_audit.attack_spec import AttackInput, MembershipScores
from fl_audit.errors import InputError, UnknownNameError
from fl_audit.records import Records
from fl_audit.stats import auc, auc_ci

CONFIDENCE = 1 - 1e-6 / 40
SEED = 20_261_126


def make_given(lab: Lab, *, known: Any = None, **settings: Any) -> AttackInput:
    return AttackInput(
        view=None,  # type: ignore[arg-type]  # an attack on a model looks at none
        settings=ATTACK.settings(**settings),
        rng=np.random.default_rng(SEED),
        candidates=lab.candidates,
        lab=lab,
        known=known,
    )


def run(lab: Lab, **settings: Any) -> MembershipScores:
    output = ATTACK.run(make_given(lab, **settings))
    assert isinstance(output, MembershipScores)
    return output


def as_proxy(task: Any, rows: NDArray[np.int64], target: Target | None = None) -> Any:
    """A model of the adversary's own, trained on every other of some auxiliary records."""
    workshop = task.candidates.workshop
    is_member = np.arange(len(rows)) % 2 == 0
    if target is None:
        job = Job(workshop.pool.take(rows[is_member]), 5)
        config = TrainingConfig(epochs=40, learning_rate=2e-3)
        target = module_target(train_one(workshop.build, job, config))
    return Lab(workshop, target, rows, np.array([], dtype=np.int64)), is_member


# -- what it must show ---------------------------------------------------------------------------


def test_chance_where_no_candidate_was_trained_on(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK, part="null")
    estimate = auc_ci(is_member, output.scores, confidence=CONFIDENCE)
    assert estimate.low <= 0.5 <= estimate.high


def test_members_of_a_memorised_set_stand_out(memorised: Any) -> None:
    is_member, output = memorised.run(ATTACK)
    assert auc_ci(is_member, output.scores, confidence=CONFIDENCE).low > 0.5


def test_at_least_as_good_as_the_loss_threshold(overfitted: Any) -> None:
    """On the same records, and with no more known ones than it can do with."""
    is_member, output = overfitted.run(ATTACK)
    lab = overfitted.candidates
    scored = np.ones(len(lab.rows), dtype=np.bool_)
    scored[np.sort(np.random.default_rng(1).permutation(300)[:150])] = False  # as conftest does
    assert (overfitted.is_member[scored] == is_member).all()
    by_loss = loss_scores(lab.logits(), lab.candidates.labels)[scored]
    assert auc(is_member, output.scores) >= auc(is_member, by_loss)


def test_same_generator_same_bytes(memorised: Any) -> None:
    settings = {"loss": False, "epochs": 2, "activations": ["1"], "gradients": ["0", "2"]}
    first, second = (memorised.run(ATTACK, **settings)[1].scores.tobytes() for _ in range(2))
    assert first == second


# -- trained on another model --------------------------------------------------------------------


def test_trained_on_a_shadow_model(memorised: Any) -> None:
    output = run(memorised.candidates, train_on="shadow", epochs=3)
    assert auc_ci(memorised.is_member, output.scores, confidence=CONFIDENCE).low > 0.5
    assert "300 records of a shadow model" in output.notes[0]
    played, _ = memorised.candidates.calibration("online", 2)
    assert np.isfinite(run(played, train_on="shadow", epochs=1).scores).all()  # the next pair


def test_trained_on_a_proxy(memorised: Any) -> None:
    lab = replace(memorised.candidates, proxy=as_proxy(memorised, np.arange(600, 900)))
    output = run(lab, train_on="proxy", epochs=3)
    assert auc_ci(memorised.is_member, output.scores, confidence=CONFIDENCE).low > 0.5
    assert "300 records of the adversary's own model" in output.notes[0]


def test_a_proxy_with_audited_records_is_refused(memorised: Any) -> None:
    rows = np.concatenate([np.arange(600, 700), [4]])
    proxy = as_proxy(memorised, rows, memorised.candidates.target)
    number = memorised.candidates.workshop.pool.ids[4]
    with pytest.raises(InputError, match=f"record {number} of the proxy.*audited record"):
        run(replace(memorised.candidates, proxy=proxy), train_on="proxy")


def test_a_proxy_of_another_architecture_serves_a_black_box_only(memorised: Any) -> None:
    wide = fresh_builder(nn.Sequential(nn.Linear(64, 130), nn.ReLU(), nn.Linear(130, 10)))
    proxy = as_proxy(memorised, np.arange(600, 900), module_target(wide(1)))
    lab = replace(memorised.candidates, proxy=proxy)
    with pytest.raises(InputError, match=r"layer '0'.*\[130, 64\].*\[128, 64\]"):
        run(lab, train_on="proxy")
    output = run(lab, train_on="proxy", gradients=[], epochs=1)
    assert "answers only" in output.notes[0]


def test_a_proxy_with_other_classes_is_refused(memorised: Any) -> None:
    pool = memorised.candidates.workshop.pool.take(np.arange(600, 700))
    few = Records(pool.ids, pool.inputs, pool.labels % 3)
    workshop = Workshop(few, 100, Task("classification", 3), trainer=None, train_size=50, seed=0)
    target = callable_target(lambda x: np.full((len(x), 3), 1 / 3))
    proxy = (
        Lab(workshop, target, np.arange(100), np.array([], dtype=np.int64)),
        np.arange(100) < 50,
    )
    with pytest.raises(InputError, match="same number of classes"):
        run(replace(memorised.candidates, proxy=proxy), train_on="proxy", gradients=[])


@pytest.mark.parametrize(
    ("train_on", "message"), [("proxy", "needs another model"), ("known", "membership is granted")]
)
def test_nothing_to_learn_from_is_refused(memorised: Any, train_on: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(memorised.candidates, train_on=train_on)


# -- other targets -------------------------------------------------------------------------------


def test_a_function_is_attacked_by_its_answers(memorised: Any) -> None:
    lab = memorised.candidates

    def predict(inputs: NDArray[np.float32]) -> NDArray[np.floating]:
        logits = lab.target.predict(inputs)
        return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))

    black_box = replace(lab, target=callable_target(predict))
    rows = np.arange(150)
    known = (rows, memorised.is_member[rows])
    output = run(black_box, known=known, gradients=[], epochs=3)
    is_member = memorised.is_member[150:]
    assert auc_ci(is_member, output.scores[150:], confidence=CONFIDENCE).low > 0.5
    with pytest.raises(InputError, match=r"gradients = \[\]"):
        run(black_box, known=known)


def test_regression() -> None:
    """400 numbers without rhyme or reason, of which half are learnt by heart."""
    rng = np.random.default_rng(SEED)
    inputs = rng.normal(size=(400, 20)).astype(np.float32)
    targets = rng.normal(size=400).astype(np.float32)
    pool = Records(np.arange(400), inputs, np.zeros(400, dtype=np.int64), targets)
    is_member = np.arange(400) % 2 == 0
    build = fresh_builder(nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 1)))
    config = TrainingConfig(epochs=60, learning_rate=5e-3, loss="mse")
    target = module_target(train_one(build, Job(pool.take(np.flatnonzero(is_member)), 1), config))
    workshop = Workshop(pool, 400, Task("regression", 2), trainer=None, train_size=200, seed=0)
    lab = Lab(workshop, target, np.arange(400), np.array([], dtype=np.int64))
    rows = np.arange(200)
    output = run(lab, known=(rows, is_member[rows]), epochs=3)
    scored = slice(200, 400)
    assert auc_ci(is_member[scored], output.scores[scored], confidence=CONFIDENCE).low > 0.5
    with pytest.raises(InputError, match="nothing to look at"):
        run(lab, known=(rows, is_member[rows]), gradients=[], loss=False)


# -- bad input -----------------------------------------------------------------------------------


def test_an_unknown_layer_is_refused_by_name(memorised: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown layer with weights '1'. Known: 0, 2"):
        memorised.run(ATTACK, gradients=["1"])


def test_too_few_known_members_are_refused(memorised: Any) -> None:
    rows = np.flatnonzero(memorised.is_member)
    rows = np.concatenate([rows[:9], np.flatnonzero(~memorised.is_member)])
    with pytest.raises(InputError, match=r"'members': 9.*at least 10 of each"):
        run(memorised.candidates, known=(rows, memorised.is_member[rows]))


def test_membership_of_another_length_is_refused() -> None:
    features = Features(np.zeros((30, 1)), {})
    with pytest.raises(InputError, match=r"booleans of shape \(30,\)"):
        white_box_scores(features, np.ones(29, np.bool_), features, rng=np.random.default_rng(1))
